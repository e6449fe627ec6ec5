"""PAL: a reward for each person, on frozen features of pictures and prompts."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from scorers import catalogue
from scorers.base import ScorerBase, check_batch
from scorers.images import ImageLike, to_tensors
from scorers.loading import build, need_weights, read_state
from scorers.pal_heads import PalHead, PalOptions, published_state
from scorers.pickscore import PickScore
from scorers.preprocess import Transform
from scorers.two_tower import TwoTower

HEAD, OPTIONS = "pal.safetensors", "pal.json"


@catalogue.register("pal")
class Pal(ScorerBase):
    """Nearness of a picture to a person's point. Known people are chosen by ``for_user``.

    Without a person the score is that of the mean weights of all known people (equal weights if there are
    none): one reward for everybody.

    Args:
        backbone: gives the features; frozen.
        head: prototypes, people and maps.
    """

    name = "pal"
    needs = frozenset({"prompt", "user"})
    licence = "Apache-2.0; no weights for pictures are published, train your own"
    citation = "Chen et al., PAL: Pluralistic Alignment Framework, 2024, arXiv:2406.08469"
    weights = "folder of a CLIPModel with its tokenizer, pal.json and pal.safetensors"
    size = "backbone and about 2 M"

    def __init__(self, backbone: TwoTower, head: PalHead) -> None:
        """See the class."""
        super().__init__()
        self.backbone, self.head = backbone, head
        self.preprocess: Transform = backbone.preprocess
        self.chosen: Tensor | None = None
        self.person = ""
        nearest = (-100.0, 100.0) if head.options.nearness == "angle" else (-float("inf"), 0.0)
        self.range = nearest
        self.eval().requires_grad_(False)

    @classmethod
    def load(
        cls, weights: Path | None, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> Pal:
        """Load a folder that ``save`` wrote; ``pal.safetensors`` may be in the published layout.

        Raises:
            FileNotFoundError: no folder given or found, or a file is missing in it.
            ValueError: the weights or the options do not fit.
        """
        folder = need_weights(cls.name, weights, cls.weights)
        for file in (OPTIONS, HEAD):
            if not (folder / file).is_file():
                raise FileNotFoundError(f"scorer {cls.name!r}: {folder} holds no {file}")
        options = _options(folder / OPTIONS)
        state, people = published_state(read_state(folder / HEAD))
        options = replace(options, users=people) if people else options
        head = build(lambda: PalHead(options), state, where=folder / HEAD)
        return cls(PickScore.load(folder, device=device, dtype=dtype), head.float()).to(device)

    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score pictures (B, 3, H, W) in [0, 1] for B prompts, for the chosen person: (B,) float32.

        Raises:
            ValueError: wrong shapes, or not one prompt per picture.
        """
        return self._score(x01, prompts, self.mixture().expand(len(x01), -1))

    def score_users(self, x01: Tensor, prompts: Sequence[str], users: Sequence[str]) -> Tensor:
        """Score each picture for a person of its own: (B,) float32, differentiable in all weights.

        Raises:
            ValueError: somebody unknown, not one person per picture, or see ``score_tensor``.
        """
        if len(users) != len(x01):
            raise ValueError(f"{len(x01)} pictures but {len(users)} people; give one person per picture")
        return self._score(x01, prompts, self.head.mixture(users))

    def mixture(self) -> Tensor:
        """(groups,) weights of the chosen person, or the mean of all."""
        if self.chosen is not None:
            return self.chosen.to(self.device)
        rows = self.head.user_learner.W
        if len(rows) == 0:
            return rows.new_full((self.head.options.groups,), 1 / self.head.options.groups)
        return self.head.mix(rows).mean(0)

    def for_user(self, name: str) -> Self:
        """This scorer for a known person; the model is shared.

        Raises:
            ValueError: somebody unknown.
        """
        return self._chosen(self.head.mixture([name])[0].detach(), name)

    def for_mixture(self, weights: Sequence[float] | Tensor) -> Self:
        """This scorer for fixed weights of the groups, not negative and of sum 1; the model is shared.

        Raises:
            ValueError: not one weight per group, a negative one, or another sum.
        """
        given = torch.as_tensor(weights, dtype=torch.float32)
        groups = self.head.options.groups
        if given.shape != (groups,) or bool((given < 0).any()) or abs(float(given.sum()) - 1) > 1e-4:
            raise ValueError(
                f"a mixture is {groups} weights that are not negative and sum to 1, got {weights}"
            )
        return self._chosen(given, "mixture")

    @torch.no_grad()
    def fit_user(
        self,
        name: str,
        first: Sequence[ImageLike],
        second: Sequence[ImageLike],
        prompts: Sequence[str],
        labels: Sequence[float],
        *,
        prior: float = 1.0,
    ) -> Self:
        """Learn a new person from a few votes (8 will do for two groups) and add them to the known people.

        Only the person's weights of the groups are fitted, see ``PalHead.fit_row``.

        Args:
            name: of the person.
            first: N pictures.
            second: N others.
            prompts: N prompts.
            labels: N probabilities that the first picture is preferred.
            prior: strength of the belief that a person is like the average.

        Returns:
            This scorer for the new person.

        Raises:
            ValueError: the name is taken, no votes, counts that differ, or a label outside [0, 1].
        """
        if name in self.head.options.users:
            raise ValueError(f"PAL knows a {name!r} already; choose another name")
        if not labels or not len(first) == len(second) == len(prompts) == len(labels):
            raise ValueError(
                f"votes do not match: {len(first)} first and {len(second)} second pictures, {len(prompts)} "
                f"prompts, {len(labels)} labels"
            )
        if not all(0 <= label <= 1 for label in labels):
            raise ValueError("labels must lie in [0, 1]: the probability that the first picture is preferred")
        sides = [self.features(self._fitted(side), prompts) for side in (first, second)]
        wanted = torch.tensor(labels, dtype=torch.float32, device=self.device)
        row = self.head.fit_row(sides[0][0], sides[1][0], wanted, sides[0][1], prior=prior)
        self._add(name, row)
        return self.for_user(name)

    def features(self, x01: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Features (B, feature) of items and (B, D) of prompts, for the head."""
        image = self.backbone.image_features(self.preprocess(x01))
        text = self.backbone.encode_prompts(prompts)
        return torch.cat([text, image], 1) if self.head.options.with_prompt else image, text

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Save backbone and head for ``scorers.load("pal", weights=folder)``.

        ``dtype`` is that of the backbone in its file. Every file is written beside and then moved into place.

        Raises:
            TypeError: the backbone cannot be saved.
        """
        from safetensors.torch import save_file

        if not isinstance(self.backbone, PickScore):
            raise TypeError(
                f"a PAL on {type(self.backbone).__name__} cannot be saved; its backbone is PickScore"
            )
        folder = Path(folder)
        self.backbone.save(folder, dtype)
        state = {k: v.detach().cpu().contiguous() for k, v in self.head.state_dict().items()}
        save_file(state, folder / f"{HEAD}.tmp", metadata={"format": "pt"})
        (folder / f"{OPTIONS}.tmp").write_text(json.dumps(asdict(self.head.options), indent=2) + "\n")
        for file in (OPTIONS, HEAD):
            os.replace(folder / f"{file}.tmp", folder / file)

    def describe(self) -> dict[str, str]:
        """See ScorerBase; with the person."""
        return super().describe() | {"user": self.person}

    def _score(self, x01: Tensor, prompts: Sequence[str], weights: Tensor) -> Tensor:
        check_batch(x01, prompts)
        items, text = self.features(x01, prompts)
        with torch.autocast(items.device.type, enabled=False):
            out: Tensor = self.head(items, weights, text)
        return out

    def _fitted(self, images: Sequence[ImageLike]) -> Tensor:
        """(N, 3, size, size) pictures of any sizes, fitted to the backbone."""
        return torch.cat([self.preprocess.fit(x[None].to(self.device)) for x in to_tensors(images)])

    def _chosen(self, weights: Tensor, person: str) -> Self:
        found = copy.copy(self)
        found.chosen, found.person = weights, person
        return found

    def _add(self, name: str, row: Tensor) -> None:
        rows = self.head.user_learner.W
        grown = torch.cat([rows.detach(), row[None].to(rows)])
        self.head.user_learner.W = nn.Parameter(grown, requires_grad=rows.requires_grad)
        self.head.options = replace(self.head.options, users=(*self.head.options.users, name))


def _options(file: Path) -> PalOptions:
    try:
        return PalOptions(**json.loads(file.read_text()))
    except (json.JSONDecodeError, TypeError, ValueError) as error:
        raise ValueError(f"{file} holds no options of PAL: {error}") from error
