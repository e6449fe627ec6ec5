"""Heads on frozen towers while they learn: features are made once, and only the head has steps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from scorers.featured import image_inputs, joint_inputs
from scorers.gpm import GPM
from scorers.images import ImageLike
from scorers.learners import Asked, Learner, Loss, bound_scale, stack_images
from scorers.losses_structure import emd, gpm_score
from scorers.nima import NIMA, moments
from scorers.pal import Pal
from scorers.votes import Item, Ranking, Rating, Vote

if TYPE_CHECKING:
    from scorers.train_options import TrainOptions

BATCH = 64
"""Pictures that go through a frozen tower at once."""


class HeadLearner(Learner):
    """A head on a frozen tower: ``embed`` is called once for each picture, before the first step."""

    @abstractmethod
    def embed(self, x01: Tensor) -> Tensor:
        """(B, D) features of (B, 3, H, W) pictures in [0, 1]."""

    @abstractmethod
    def head(self) -> nn.Module:
        """What trains."""

    def prepare(self, items: Sequence[Item]) -> Sequence[Item]:
        """Every picture as its features (D,); a picture that stands in several items is read once."""
        features = self._features([image for item in items for image in _images(item)])
        return [_with(item, [features[id(image)] for image in _images(item)]) for item in items]

    @torch.no_grad()
    def _features(self, images: Sequence[ImageLike]) -> dict[int, Tensor]:
        once = list({id(image): image for image in images}.values())
        if all(isinstance(i, Tensor) and i.ndim == 1 for i in once):
            return {id(i): i for i in once if isinstance(i, Tensor)}
        found: dict[int, Tensor] = {}
        for start in range(0, len(once), BATCH):
            some = once[start : start + BATCH]
            rows = self.embed(stack_images(self.scorer, some)).cpu()
            found |= {id(image): row for image, row in zip(some, rows, strict=True)}
        return found

    def unlock(self, options: TrainOptions) -> None:
        """See Learner: the head alone."""
        self.scorer.requires_grad_(False)
        self.head().requires_grad_(True)


class PalLearner(HeadLearner):
    """PAL: every vote for the person who cast it. People and prototypes have a rate of their own."""

    losses = frozenset({"bradley-terry", "pickscore", "hinge", "listwise"})
    dropout = True

    def embed(self, x01: Tensor) -> Tensor:
        """See HeadLearner."""
        pal = self._pal()
        out: Tensor = pal.backbone.image_features(pal.preprocess(x01))
        return out

    def head(self) -> nn.Module:
        """See HeadLearner."""
        head: nn.Module = self._pal().head
        return head

    def scores(self, asked: Asked) -> Tensor:
        """See Learner; also of features."""
        pal = self._pal()
        if asked.pictures.ndim == 4:
            found: Tensor = pal.score_users(asked.pictures, asked.prompts, asked.users)
            return found
        text = pal.backbone.encode_prompts(asked.prompts)
        items = torch.cat([text, asked.pictures], 1) if pal.head.options.with_prompt else asked.pictures
        found = pal.head(items, pal.head.mixture(asked.users), text)
        return found

    def groups(self, options: TrainOptions) -> list[dict[str, Any]]:
        """Maps at the rate, people and prototypes at ``head_rate``, the scale at 20 times that."""
        users = self._pal().head.user_learner
        table = [p for name, p in users.named_parameters() if name in ("W", "P")]
        scale = [self._pal().head.logit_scale]
        named = {id(p) for p in (*table, *scale)}
        maps = [p for p in self.head().parameters() if id(p) not in named]
        rate = options.learning_rate if options.head_rate is None else options.head_rate
        return [
            {"params": maps, "lr": options.learning_rate, "weight_decay": options.weight_decay},
            {"params": table, "lr": rate, "weight_decay": 0.0},
            {"params": scale, "lr": 20 * rate, "weight_decay": 0.0},
        ]

    def tame(self) -> None:
        """See Learner: beyond 100 the scale has no gradient and would never come back."""
        bound_scale(self.head())

    def _pal(self) -> Any:
        return self.scorer


class EncoderLearner(HeadLearner):
    """A head on the unit features of an encoder with two towers."""

    def embed(self, x01: Tensor) -> Tensor:
        """See HeadLearner."""
        out: Tensor = self._scorer().encoder.encode_images(x01)
        return out

    def head(self) -> nn.Module:
        """See HeadLearner."""
        head: nn.Module = self._scorer().head
        return head

    def features(self, pictures: Tensor) -> Tensor:
        """(N, D) of pictures, or of their features as they are."""
        return pictures if pictures.ndim == 2 else self.embed(pictures)

    def _scorer(self) -> Any:
        return self.scorer


class GpmLearner(EncoderLearner):
    """General preference model: log-odds of pairs; no picture has a worth of its own, so no lists."""

    losses = frozenset({"bradley-terry", "pickscore", "regression"})

    def logit(self, votes: Sequence[Vote]) -> Tensor:
        """See Learner."""
        gpm, asked = self._scorer(), self.asked(votes)
        text = gpm.encoder.encode_prompts(asked.prompts)
        first, second = gpm.head.embed(joint_inputs(self.features(asked.pictures), text)).chunk(2)
        gate = gpm.head.gate(image_inputs(text[: len(votes)]))
        return gpm_score(first, second, gate) / float(gpm.temperature)


class NimaLearner(EncoderLearner):
    """NIMA: marks by the earth mover's distance, or comparisons by the mean mark as log-worth."""

    losses = frozenset({"emd", "bradley-terry", "listwise"})
    dropout = True

    def items(self, items: Sequence[Item], loss: Loss) -> list[Item]:
        """See Learner; ratings are what ``emd`` learns from.

        Raises:
            ValueError: ratings for another loss, or other items for ``emd``.
        """
        if (loss == "emd") != all(isinstance(item, Rating) for item in items):
            raise ValueError("the loss emd learns from ratings, the others from comparisons")
        return list(items) if loss == "emd" else super().items(items, loss)

    def each(self, items: Sequence[Item], loss: Loss) -> Tensor:
        """See Learner."""
        if loss != "emd":
            return super().each(items, loss)
        ratings = [item for item in items if isinstance(item, Rating)]
        found = self.distribution(self.read([r.image for r in ratings]))
        return emd(found, torch.stack([shares(r.values, found.shape[1]) for r in ratings]).to(found))

    def scores(self, asked: Asked) -> Tensor:
        """See Learner."""
        return moments(self.distribution(asked.pictures))[0]

    def distribution(self, pictures: Tensor) -> Tensor:
        """(N, bins) probabilities of the marks."""
        out: Tensor = self._scorer().head(image_inputs(self.features(pictures)))
        return out


def shares(values: Sequence[float], bins: int) -> Tensor:
    """(bins,) shares of the marks 1, ..., bins; a single mean mark lies between its two neighbours.

    Raises:
        ValueError: another number of marks, or a mean outside [1, bins].
    """
    if len(values) == bins:
        return torch.tensor(values)
    if len(values) != 1 or not 1 <= values[0] <= bins:
        raise ValueError(f"a rating must be {bins} shares or a mean from 1 to {bins}, got {tuple(values)}")
    below = min(int(values[0]), bins - 1)
    out = torch.zeros(bins)
    out[below - 1], out[below] = 1 - (values[0] - below), values[0] - below
    return out


def head_learner(scorer: nn.Module) -> Learner | None:
    """Learner of a head on a frozen tower; None where the scorer is none."""
    if isinstance(scorer, GPM):
        return GpmLearner(scorer)
    if isinstance(scorer, NIMA):
        return NimaLearner(scorer)
    return PalLearner(scorer) if isinstance(scorer, Pal) else None


def _images(item: Item) -> Sequence[ImageLike]:
    if isinstance(item, Rating):
        return [item.image]
    return item.images if isinstance(item, Ranking) else [item[0], item[1]]


def _with(item: Item, features: Sequence[Tensor]) -> Item:
    """The same item of features in place of pictures."""
    if isinstance(item, Rating):
        return item._replace(image=features[0])
    if isinstance(item, Ranking):
        return item._replace(images=features)
    return Vote(*item)._replace(first=features[0], second=features[1])
