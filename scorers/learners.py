"""Scorers while they learn: what each says of a comparison, as log-odds, and the loss of that."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor, nn

from scorers.base import ScorerBase
from scorers.freezing import unlock
from scorers.hpsv3 import HPSv3
from scorers.images import ImageLike, to_tensors
from scorers.losses import (
    choice_loss,
    hinge_loss,
    listwise_loss,
    pair_cross_entropy,
    pickscore_loss,
    ranking_hinge,
)
from scorers.losses_reward import hpsv3_loss, margin_loss, regression_loss, soft_choice_loss, ties_loss
from scorers.votes import Item, Ranking, Rating, Vote, as_ranking, as_votes

if TYPE_CHECKING:
    from scorers.train_options import TrainOptions

Loss = Literal[
    "pickscore", "hpsv2", "bradley-terry", "hinge", "margin", "ties", "soft-choice", "regression", "hpsv3",
    "listwise", "choice", "ranking-hinge", "emd",
]  # fmt: skip
LOSSES: tuple[Loss, ...] = get_args(Loss)
PAIR_LOSSES: Mapping[Loss, Callable[[Tensor, Tensor], Tensor]] = {
    "pickscore": pair_cross_entropy,
    "hpsv2": pair_cross_entropy,
    "bradley-terry": pair_cross_entropy,
    "hinge": hinge_loss,
    "margin": margin_loss,
    "ties": ties_loss,
    "soft-choice": soft_choice_loss,
    "regression": regression_loss,
}
"""Of (B,) log-odds and (B,) labels."""
LIST_LOSSES: Mapping[Loss, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "listwise": listwise_loss,
    "choice": choice_loss,
    "ranking-hinge": ranking_hinge,
}
"""Of (B, K) log-worths, what people said, and where there is a picture."""
MAX_LOGIT_SCALE = math.log(100)


@runtime_checkable
class TwoTower(Protocol):
    """A scorer of the form scale * cos(picture, prompt)."""

    def encode_images(self, x01: Tensor) -> Tensor:
        """(B, D) unit features of (B, 3, H, W) pictures in [0, 1]."""
        ...

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """(B, D) unit features."""
        ...

    def scale(self) -> Tensor:
        """exp(logit_scale), a scalar, by which cosines become log-worths."""
        ...


@dataclass(frozen=True, kw_only=True)
class Asked:
    """N pictures to be scored, each for its prompt, user and dimension."""

    pictures: Tensor
    """(N, 3, H, W) in [0, 1], or (N, D) features."""
    prompts: Sequence[str]
    users: Sequence[str]
    dims: Sequence[str]


@runtime_checkable
class Conditioned(Protocol):
    """A scorer with a condition for each dimension (MPS)."""

    dims: tuple[str, ...]

    def score_conditions(self, x01: Tensor, prompts: Sequence[str], dims: Sequence[str]) -> Tensor:
        """(B,) scores, each picture under a condition of its own."""
        ...


class Learner(nn.Module):
    """A scorer with trainable parameters and one value of log-worth per picture.

    The base class serves every scorer whose ``score_tensor`` is differentiable in the weights:
    log-worth = score / temperature. Others override ``scores``, or ``logit`` where no picture has a worth of
    its own.
    """

    losses: frozenset[str] = frozenset(
        {"pickscore", "hpsv2", "bradley-terry", "margin", "ties", "soft-choice", *LIST_LOSSES}
    )
    dropout = False
    """Whether the scorer trains in training mode (with dropout)."""

    def __init__(self, scorer: nn.Module) -> None:
        """``scorer`` is trained in place."""
        super().__init__()
        self.scorer = scorer

    def scores(self, asked: Asked) -> Tensor:
        """(N,) log-worths: the chance of one against another is sigmoid of the difference."""
        scorer = self.scorer
        return log_worths(scorer, scorer.score_tensor(asked.pictures, asked.prompts))  # type: ignore[operator]

    def logit(self, votes: Sequence[Vote]) -> Tensor:
        """(B,) log-odds that the first picture of each vote is preferred."""
        first, second = self.scores(self.asked(votes)).chunk(2)
        return first - second

    def forward(self, items: Sequence[Item], loss: Loss, counts: Tensor | None = None) -> Tensor:
        """Loss of each item, weighed by 1 / counts, summed: a scalar.

        Args:
            items: votes; rankings for losses of lists; ratings for ``emd``.
            loss: one of ``losses``.
            counts: (B,) how many items of the data share the prompt.
        """
        each = self.each(items, loss)
        return each.sum() if counts is None else (each / counts.to(each)).sum()

    def each(self, items: Sequence[Item], loss: Loss) -> Tensor:
        """(B,) loss of each item."""
        if loss in LIST_LOSSES:
            return self.lists([i for i in items if isinstance(i, Ranking)], loss)
        votes = [i for i in items if isinstance(i, Vote)]
        z = self.logit(votes)
        label = torch.tensor([v.label for v in votes], device=z.device)
        cost = PAIR_LOSSES[loss](z, label)
        return cost - (label == 0.5) * torch.log(torch.tensor(2.0)) if loss == "pickscore" else cost

    def lists(self, rankings: Sequence[Ranking], loss: Loss) -> Tensor:
        """(B,) loss of lists of any lengths; all their pictures go through the scorer at once."""
        flat = Asked(
            pictures=self.read([image for r in rankings for image in r.images]),
            prompts=[r.prompt for r in rankings for _ in r.images],
            users=[r.user for r in rankings for _ in r.images],
            dims=[r.dim for r in rankings for _ in r.images],
        )
        lengths = torch.tensor([len(r.images) for r in rankings])
        mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
        found = self.scores(flat)
        mask = mask.to(found.device)
        scores = found.new_zeros(mask.shape).masked_scatter(mask, found)
        values = torch.tensor([v for r in rankings for v in r.values], device=found.device)
        said = values.new_zeros(mask.shape).masked_scatter(mask, values)
        return LIST_LOSSES[loss](scores, said, mask)

    def asked(self, votes: Sequence[Vote]) -> Asked:
        """All first pictures, then all second ones."""
        return Asked(
            pictures=self.read([v.first for v in votes] + [v.second for v in votes]),
            prompts=[v.prompt for v in votes] * 2,
            users=[v.user for v in votes] * 2,
            dims=[v.dim for v in votes] * 2,
        )

    def read(self, images: Sequence[ImageLike]) -> Tensor:
        """See ``stack_images``; features (D,) are stacked as they are."""
        if all(isinstance(i, Tensor) and i.ndim == 1 for i in images):
            rows = [i for i in images if isinstance(i, Tensor)]
            return torch.stack(rows).to(next(self.scorer.parameters()).device)
        return stack_images(self.scorer, images)

    def items(self, items: Sequence[Item], loss: Loss) -> list[Item]:
        """What the loss is made of: lists for losses of lists, pairs for the others.

        Raises:
            ValueError: ratings, which this scorer cannot learn from, or rankings that order nothing.
        """
        if any(isinstance(item, Rating) for item in items):
            raise ValueError(f"{type(self.scorer).__name__} learns from comparisons, not from ratings")
        if loss in LIST_LOSSES:
            return [i if isinstance(i, Ranking) else as_ranking(Vote(*i)) for i in items]
        votes: list[Item] = [*as_votes(items)]
        if not votes:
            raise ValueError("none of the rankings orders two pictures; there is nothing to learn")
        return votes

    def prepare(self, items: Sequence[Item]) -> Sequence[Item]:
        """Do once what no step changes; heads on frozen towers turn pictures into features."""
        return items

    def unlock(self, options: TrainOptions) -> None:
        """Let the weights train that are meant to."""
        unlock(self.scorer, vision=options.unlocked_vision, text=options.unlocked_text)

    def groups(self, options: TrainOptions) -> list[dict[str, Any]]:
        """Parameter groups of the optimiser: matrices decay; biases, norms, vectors and the scale do not."""
        decay: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for parameter in self.parameters():
            if parameter.requires_grad:
                decay[parameter.ndim > 1].append(parameter)
        rates = {"lr": options.learning_rate}
        return [
            {"params": decay[True], "weight_decay": options.weight_decay, **rates},
            {"params": decay[False], "weight_decay": 0.0, **rates},
        ]

    def tame(self) -> None:
        """Keep weights in bounds, after every step."""


class TowerLearner(Learner):
    """PickScore and HPSv2: pictures and prompts are encoded once, and the scale is bounded by 100."""

    in_batch_negatives = False

    def scores(self, asked: Asked) -> Tensor:
        """See Learner."""
        towers = self.scorer
        assert isinstance(towers, TwoTower)
        cos = (towers.encode_images(asked.pictures) * towers.encode_prompts(asked.prompts)).sum(1)
        return towers.scale() * cos

    def forward(self, items: Sequence[Item], loss: Loss, counts: Tensor | None = None) -> Tensor:
        """See Learner; PickScore's loss may take the other pictures and prompts of the batch as negatives."""
        if loss != "pickscore":
            return super().forward(items, loss, counts)
        votes, towers = [i for i in items if isinstance(i, Vote)], self.scorer
        assert isinstance(towers, TwoTower)
        first, second = towers.encode_images(self.asked(votes).pictures).chunk(2)
        return pickscore_loss(
            towers.encode_prompts([v.prompt for v in votes]), first, second, scale=towers.scale(),
            label_0=torch.tensor([v.label for v in votes], device=first.device), num_examples=counts,
            in_batch_negatives=self.in_batch_negatives, weight_sum=1.0,
        )  # fmt: skip

    def tame(self) -> None:
        """See Learner."""
        bound_scale(self.scorer)


class ConditionLearner(Learner):
    """MPS: every vote under the condition that it was cast for, the main one where it says none."""

    def scores(self, asked: Asked) -> Tensor:
        """See Learner."""
        scorer = self.scorer
        assert isinstance(scorer, Conditioned)
        dims = [dim or scorer.dims[0] for dim in asked.dims]
        return scorer.score_conditions(asked.pictures, asked.prompts, dims)

    def groups(self, options: TrainOptions) -> list[dict[str, Any]]:
        """See Learner; the cross model, which starts anew beside trained towers, at ``head_rate``."""
        rate = options.learning_rate if options.head_rate is None else options.head_rate
        new = {id(p) for name, p in self.named_parameters() if "cross_model" in name}
        return [
            {**group, "params": [p for p in group["params"] if (id(p) in new) == own], "lr": lr}
            for group in super().groups(options)
            for own, lr in ((False, options.learning_rate), (True, rate))
        ]

    def tame(self) -> None:
        """See TowerLearner."""
        bound_scale(self.scorer)


class UncertainLearner(Learner):
    """HPSv3: the cross-entropy of scores that are drawn from each side's own mean and deviation."""

    losses = Learner.losses | {"hpsv3"}
    dropout = True  # the draws are random as dropout is, so that the step seeds them

    def each(self, items: Sequence[Item], loss: Loss) -> Tensor:
        """See Learner."""
        if loss != "hpsv3":
            return super().each(items, loss)
        scorer, asked = self.scorer, self.asked([i for i in items if isinstance(i, Vote)])
        assert isinstance(scorer, HPSv3)
        first, second = scorer.mu_log_sigma(asked.pictures, asked.prompts).chunk(2)
        label = torch.tensor([i.label for i in items if isinstance(i, Vote)], device=first.device)
        return hpsv3_loss(first, second, label)


def bound_scale(scorer: nn.Module) -> None:
    """Keep exp(logit_scale) at 100 or below, as CLIP is trained."""
    for name, parameter in scorer.named_parameters():
        if name.endswith("logit_scale"):
            parameter.data.clamp_(max=MAX_LOGIT_SCALE)


def log_worths(scorer: nn.Module, score: Tensor) -> Tensor:
    """Scores in the units of the scorer's own calibration, higher is better."""
    if not isinstance(scorer, ScorerBase):
        return score
    return score / (scorer.temperature if scorer.higher_better else -scorer.temperature)


def stack_images(scorer: nn.Module, images: Sequence[ImageLike]) -> Tensor:
    """Read pictures and fit each to the scorer's size: (B, 3, size, size) in [0, 1] on its device.

    Raises:
        ValueError: a bad picture; pictures of several sizes for a scorer that does not fit them.
    """
    device = next((p.device for p in scorer.parameters()), torch.device("cpu"))
    fit = scorer.preprocess.fit if isinstance(scorer, ScorerBase) and scorer.preprocess else None
    with torch.no_grad():
        pictures = [x[None].to(device) for x in to_tensors(images)]
        if fit is not None:
            return torch.cat([fit(x) for x in pictures])
    sizes = {tuple(x.shape[2:]) for x in pictures}
    if len(sizes) > 1:
        raise ValueError(
            f"pictures of sizes {sorted(sizes)} for a scorer without a transform; resize them to one size"
        )
    return torch.cat(pictures)


def learner_for(scorer: nn.Module) -> Learner:
    """The learner that suits a scorer.

    Raises:
        ValueError: it has no weights.
    """
    from scorers.heads import head_learner  # builds on this module

    if isinstance(scorer, Learner):
        return scorer
    if not any(True for _ in scorer.parameters()):
        raise ValueError(f"{type(scorer).__name__} has no weights that could be trained")
    head = head_learner(scorer)
    if head is not None:
        return head
    if isinstance(scorer, HPSv3):
        return UncertainLearner(scorer)
    if isinstance(scorer, TwoTower):
        return TowerLearner(scorer)
    return ConditionLearner(scorer) if isinstance(scorer, Conditioned) else Learner(scorer)
