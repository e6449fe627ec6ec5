"""Flow-DPPO."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffalign.objectives.base import Metrics, ReduceMean, State
from diffalign.objectives.ratio import advantage_of, log_ratio
from diffalign.objectives.steps import BatchKind, OnlineObjective, Steps, given, online_objectives


@online_objectives.register("flow_dppo")
@dataclass(frozen=True, kw_only=True)
class FlowDPPO(OnlineObjective[Steps]):
    """Policy gradient masked by a divergence, not by the ratio (Flow-DPPO, of UniRL and verl-omni).

    loss = -A r, and 0 for a step whose KL <(mean - mean_old)^2> / (2 std^2) is tau or more while it still
    moves away from the behaviour policy (r > 1 and A > 0, or r < 1 and A < 0). Nothing else is cut.
    """

    paper: ClassVar[str] = "https://github.com/Tencent-Hunyuan/UniRL"
    batch: ClassVar[BatchKind] = "steps"
    needs: ClassVar[frozenset[str]] = frozenset({"old_logp", "advantage", "drift", "std"})

    tau: float = 1e-5
    """KL per element from which on a step may only come back."""

    def __post_init__(self) -> None:
        """Check the range."""
        self._require(0 < self.tau < math.inf, "tau", "above 0 and finite (1e-5 is usual)")

    def loss(
        self, batch: Steps, reduce_mean: ReduceMean = lambda x: x, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        """(N,) losses of N steps; see OnlineObjective.loss."""
        advantage, ratio = advantage_of(batch), log_ratio(batch).exp()
        std = given(batch.std, "std", "which scales the KL")
        kl = given(batch.drift, "drift", "by which steps are masked").detach() / (2 * std.square())
        away = (ratio.detach() - 1) * advantage > 0
        masked = (kl >= self.tau) & away
        loss = torch.where(masked, torch.zeros_like(ratio), -advantage * ratio)
        return loss, {"ratio": ratio.detach(), "masked": masked.to(kl.dtype), "kl_old": kl}
