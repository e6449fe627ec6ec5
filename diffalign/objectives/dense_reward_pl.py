"""Dense reward on whole trajectories: Plackett-Luce over discounted log-ratios."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from diffalign.objectives.base import Metrics, ReduceMean, State
from diffalign.objectives.ratio import advantage_of
from diffalign.objectives.steps import BatchKind, OnlineObjective, Steps, Unit, given, online_objectives


@online_objectives.register("dense_reward_pl")
@dataclass(frozen=True, kw_only=True)
class DenseRewardPL(OnlineObjective[Steps]):
    """Rank a prompt's images by discounted sums over their steps (arXiv:2402.08265).

    L_j = C sum_k w_k clamp(ln p(x_k+1) - ln p_ref(x_k+1), -clip, clip) over the recorded steps k of image j;
    loss = sum_j [logsumexp over the images not better than j of L_i, less L_j], in the order of the
    advantages (or rewards). Images of equal reward share a place: the mean of their terms.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2402.08265"
    batch: ClassVar[BatchKind] = "steps"
    unit: ClassVar[Unit] = "group"
    needs_reference: ClassVar[bool] = True
    whole_groups: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"ref_logp", "advantage", "step", "image"})

    temperature: float = 10.0
    """C; log-probabilities are means over elements."""
    clip: float = 1e-4
    """Log-ratios are cut here, and have no gradient beyond."""
    weighting: Literal["uniform", "discount"] = "uniform"
    """Weights of an image's steps: uniform, for steps drawn with probability ~ gamma^k, as published; or
    discount, gamma^k over its sum, for all steps."""
    gamma: float = 0.9
    """Discount of each further denoising step."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("temperature", "clip"):
            self._require(0 < getattr(self, name) < math.inf, name, "above 0 and finite")
        self._require(0 < self.gamma <= 1, "gamma", "above 0 and at most 1 (early steps count more)")

    def loss(
        self, batch: Steps, reduce_mean: ReduceMean = lambda x: x, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        """(U,) losses of U prompts; see OnlineObjective.loss."""
        change = batch.logp - given(batch.ref_logp, "ref_logp", "against which a ratio is formed")
        image = given(batch.image, "image", "by which steps are put together")
        advantage, same_image = advantage_of(batch), image[:, None] == image
        total = self.temperature * self.sums(batch, change.clamp(-self.clip, self.clip), same_image)  # (N,)
        one_each = _first(same_image)  # one row stands for each image
        peers = _same(batch.group) & one_each
        ahead = advantage[:, None] - advantage  # (N, N): by how much row i is above row j
        rivals = (peers & (ahead >= 0)) | torch.eye(len(total), dtype=torch.bool, device=total.device)
        behind = torch.logsumexp(total.expand(len(total), -1).masked_fill(~rivals, -math.inf), 1)
        level = (peers & (ahead == 0)).sum(1).clamp(min=1)
        terms = torch.where(one_each, (behind - total) / level, torch.zeros_like(total))
        right = (peers & (ahead > 0) & (total[:, None] > total)).sum(1) * one_each
        couples = (peers & (ahead > 0)).sum(1) * one_each
        share = self._sum(batch, right.to(total.dtype)) / self._sum(batch, couples.to(total.dtype))
        held = (change.detach().abs() > self.clip).to(total.dtype)
        return self._sum(batch, terms), {"accuracy": share, "clipped": self.units(batch, held)}

    def sums(self, batch: Steps, change: Tensor, same_image: Tensor) -> Tensor:
        """(N,) weighted sums of (N,) log-ratios over the steps of each row's image."""
        weight = torch.ones_like(change)
        if self.weighting == "discount":
            weight = self.gamma ** given(batch.step, "step", "by which steps are discounted").to(change.dtype)
        members = same_image.to(change.dtype)
        return (members @ (weight * change)) / (members @ weight)

    def units(self, batch: Steps, values: Tensor) -> Tensor:
        """(U,) mean of (N,) row values over each prompt, in the order of first rows."""
        return self._sum(batch, values) / self._sum(batch, torch.ones_like(values))

    def _sum(self, batch: Steps, values: Tensor) -> Tensor:
        """(U,) sums of (N,) row values over each prompt."""
        same = _same(batch.group)
        first = _first(same)
        count = int(first.sum()) if batch.unit_count is None else batch.unit_count
        rows = torch.argsort((~first).long(), stable=True)[:count]
        return (same.to(values.dtype) @ values)[rows]


def _same(group: Tensor) -> Tensor:
    return group[:, None] == group


def _first(same: Tensor) -> Tensor:
    """(N,) bool, whether a row is the first of its kind, by (N, N) equality."""
    return same.long().argmax(1) == torch.arange(len(same), device=same.device)
