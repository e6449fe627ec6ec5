"""GRPO-Guard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from diffalign.objectives.base import Metrics
from diffalign.objectives.grpo import GRPO
from diffalign.objectives.ratio import clipped_surrogate, log_ratio, ratio_metrics
from diffalign.objectives.steps import Steps, given, online_objectives


@online_objectives.register("grpo_guard")
@dataclass(frozen=True, kw_only=True)
class GRPOGuard(GRPO):
    """GRPO whose clip holds good and bad steps alike, at all times (GRPO-Guard, arXiv:2510.22319).

    r = exp(std [log ratio + <(mean - mean_old)^2> / (2 std^2)]) and the clipped loss is divided by -dt. The
    bracket takes away the drift of the mean, which keeps log-ratios below 0; std and -dt make ratios and
    gradients of all steps equally large. std is the row's own: published code averages it over a batch
    whose rows are of one step.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2510.22319"
    needs: ClassVar[frozenset[str]] = frozenset({"old_logp", "advantage", "drift", "std", "sqrt_dt"})

    def of_ratio(self, batch: Steps, advantage: Tensor) -> tuple[Tensor, Metrics]:
        """See RatioObjective."""
        std, root = given(batch.std, "std", "of the ratio"), given(batch.sqrt_dt, "sqrt_dt", "of the loss")
        drift = given(batch.drift, "drift", "which the ratio is freed of")
        change = std * (log_ratio(batch) + drift / (2 * std.square()))
        ratio = change.exp()
        loss = clipped_surrogate(ratio, advantage, self.clip) / root.square()
        return self.with_kl(batch, loss, ratio_metrics(ratio, change, self.clip))
