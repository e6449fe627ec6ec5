"""DGPO: direct group preference optimization."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffalign.objectives.base import Denoised, Metrics, ReduceMean, State
from diffalign.objectives.forward_process import advantage, further, reference_distance, same_group
from diffalign.objectives.steps import BatchKind, OnlineObjective, given, online_objectives


@online_objectives.register("dgpo")
@dataclass(frozen=True, kw_only=True)
class DGPO(OnlineObjective[Denoised]):
    """Weighted denoising of a prompt's images, good against bad ones (DGPO, arXiv:2510.08425).

    w = sigma(mean over the group of A beta (d - d_ref)) without gradient, d the denoising error:
    loss = w A d + kl <(v - v_ref)^2>. The images of a group share noise and t. An image whose ratio
    exp(d_old - d) has left the clip on its advantage's side has no gradient.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2510.08425"
    batch: ClassVar[BatchKind] = "rollouts"
    whole_groups: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = True

    beta: float = 100.0
    """Strength of the pull to the reference, 10 to 100; errors are means over elements."""
    adv_max: float = 5.0
    """Advantages are cut here first."""
    clip: float = 0.05
    """How far a ratio may leave 1 before its gradient ends; 0 asks for no old policy."""
    kl: float = 1e-3
    """Weight of the distance to the reference."""

    def __post_init__(self) -> None:
        """Check ranges, and ask for what has a weight."""
        for name in ("beta", "adv_max"):
            self._require(0 < getattr(self, name) < math.inf, name, "above 0 and finite")
        self._require(0 <= self.clip < 1, "clip", "in [0, 1)")
        self._require(0 <= self.kl < math.inf, "kl", "0 or more and finite")
        needs = {"score"} | ({"old_error"} if self.clip else set())
        needs |= {"tensors", "ref_pred"} if self.kl else set()
        self._declare(needs=frozenset(needs), needs_reference=True)

    def loss(
        self, batch: Denoised, reduce_mean: ReduceMean = lambda x: x, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        """(N,) losses of N noised pictures; see OnlineObjective.loss."""
        a, error = advantage(batch, self.adv_max), batch.error
        gap = error.detach() - given(batch.ref_error, "ref_error", "against which the group is weighed")
        same = same_group(batch.group).to(error.dtype)
        logit = (same @ (a * self.beta * gap)) / same.sum(1)  # (N,), the same in all rows of a group
        w, frozen = torch.sigmoid(logit), self.frozen(batch, a)
        loss = w * a * torch.where(frozen, error.detach(), error)
        metrics = {"group_weight": w, "frozen": frozen.to(error.dtype), "gap": gap}
        if not self.kl:
            return loss, metrics
        distance = reference_distance(batch)
        return loss + self.kl * distance, metrics | {"kl": distance.detach()}

    def frozen(self, batch: Denoised, a: Tensor) -> Tensor:
        """(N,) bool, whose ratio has left the clip to where the (N,) advantages a drive it."""
        if not self.clip:
            return torch.zeros_like(a, dtype=torch.bool)
        ratio = (further(batch, "old_error") - batch.error).detach().exp()
        return torch.where(a > 0, ratio > 1 + self.clip, ratio < 1 - self.clip)
