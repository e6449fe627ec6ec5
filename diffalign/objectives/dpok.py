"""DPOK."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from diffalign.objectives.base import Metrics, ReduceMean, State
from diffalign.objectives.ratio import advantage_of, log_ratio, ratio_metrics
from diffalign.objectives.steps import BatchKind, OnlineObjective, Steps, given, online_objectives


@online_objectives.register("dpok")
@dataclass(frozen=True, kw_only=True)
class DPOK(OnlineObjective[Steps]):
    """Policy gradient with a KL to the reference on predictions (DPOK, arXiv:2305.16381, algorithm 1).

    loss = -reward_weight A clamp(r, 1 - clip, 1 + clip) + kl_weight <(pred - pred_ref)^2>, the latter without
    guidance. The clamp is no pessimistic bound: outside of it a step has no gradient on either side. The
    advantage is the reward less a learned baseline (rule ``value``); the mean over a prompt's images serves
    as well (``dr_grpo``).
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2305.16381"
    batch: ClassVar[BatchKind] = "steps"
    needs_reference: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"old_logp", "advantage", "pred_drift"})

    reward_weight: float = 100.0
    """Factor on the policy gradient."""
    kl_weight: float = 0.01
    """Factor on the distance to the reference."""
    clip: float = 1e-4
    """How far a ratio may leave 1 before its gradient ends; log-probabilities are means over elements."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("reward_weight", "kl_weight"):
            self._require(0 <= getattr(self, name) < math.inf, name, "0 or more and finite")
        self._require(0 < self.clip < 1, "clip", "in (0, 1) (1e-4 is usual)")

    def loss(
        self, batch: Steps, reduce_mean: ReduceMean = lambda x: x, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        """(N,) losses of N steps; see OnlineObjective.loss."""
        change = log_ratio(batch)
        ratio = change.exp()
        kl = given(batch.pred_drift, "pred_drift", "the distance to the reference")
        gain = advantage_of(batch) * ratio.clamp(1 - self.clip, 1 + self.clip)
        loss = -self.reward_weight * gain + self.kl_weight * kl
        return loss, ratio_metrics(ratio, change, self.clip) | {"kl": kl.detach()}
