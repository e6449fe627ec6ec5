"""What objectives on the likelihood ratio of recorded steps share."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffalign.objectives.base import Metrics, ReduceMean, State
from diffalign.objectives.steps import BatchKind, OnlineObjective, Steps, given


def clipped_surrogate(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """(N,) max(-A r, -A clamp(r, 1 - clip, 1 + clip)) (PPO, arXiv:1707.06347, eq. 7)."""
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip))


def log_ratio(batch: Steps) -> Tensor:
    """(N,) log-probability under the policy less that under the behaviour policy."""
    return batch.logp - given(batch.old_logp, "old_logp", "against which a ratio is formed")


def advantage_of(batch: Steps) -> Tensor:
    """(N,) advantages of a batch.

    Raises:
        ValueError: it has none.
    """
    return given(batch.advantage, "advantage", "which weighs the steps").to(batch.logp.dtype)


def ratio_metrics(ratio: Tensor, log_ratio: Tensor, clip: float) -> Metrics:
    """(N,) ratio, share outside the clip, and half the squared log-ratio (an estimate of the KL)."""
    ratio, log_ratio = ratio.detach(), log_ratio.detach()
    return {
        "ratio": ratio,
        "clipped": ((ratio - 1).abs() > clip).to(ratio.dtype),
        "approx_kl": 0.5 * log_ratio.square(),
    }


@dataclass(frozen=True, kw_only=True)
class RatioObjective(OnlineObjective[Steps]):
    """Raise the probability of steps of good images and lower that of bad ones, near the behaviour policy."""

    batch: ClassVar[BatchKind] = "steps"
    needs: ClassVar[frozenset[str]] = frozenset({"old_logp", "advantage"})

    clip: float = 1e-4
    """How far a ratio may leave 1 before its gradient ends; log-probabilities are means over elements."""
    adv_max: float = 5.0
    """Advantages are cut here first."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        self._require(0 < self.clip < 1, "clip", "in (0, 1) (1e-4 is usual, 1e-5 without guidance)")
        self._require(0 < self.adv_max < math.inf, "adv_max", "above 0 and finite (5 is usual)")

    @abstractmethod
    def of_ratio(self, batch: Steps, advantage: Tensor) -> tuple[Tensor, Metrics]:
        """(N,) losses and metrics of steps by their cut (N,) advantages."""

    def loss(
        self, batch: Steps, reduce_mean: ReduceMean = lambda x: x, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        """(N,) losses of N steps; see OnlineObjective.loss."""
        return self.of_ratio(batch, advantage_of(batch).clamp(-self.adv_max, self.adv_max))
