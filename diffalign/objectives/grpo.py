"""GRPO on denoising steps: Flow-GRPO, DanceGRPO, MixGRPO, Pref-GRPO, Flow-CPS."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from diffalign.objectives.base import Metrics
from diffalign.objectives.ratio import RatioObjective, clipped_surrogate, log_ratio, ratio_metrics
from diffalign.objectives.steps import Steps, given, online_objectives


@online_objectives.register("grpo")
@dataclass(frozen=True, kw_only=True)
class GRPO(RatioObjective):
    """Clipped policy gradient with group advantages and a KL to the reference (Flow-GRPO, arXiv:2505.05470).

    loss = max(-A r, -A clamp(r, 1 - clip, 1 + clip)) + kl <(mean - mean_ref)^2> / (2 rate^2).
    Variants differ in transition, steps, advantages and rewards, which are not the objective's.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2505.05470"

    kl: float = 0.0
    """Weight of the KL to the reference; 0.04 and 0.01 are published, 0 runs no reference."""
    kl_scale: Literal["rate", "exact"] = "rate"
    """Standard deviation under the KL: rate, the SDE's without sqrt(dt), as released, which is -dt times the
    exact KL per element; or exact, that of the step."""

    def __post_init__(self) -> None:
        """Check ranges, and ask for the reference only where it has a weight."""
        super().__post_init__()
        self._require(0 <= self.kl < math.inf, "kl", "0 or more and finite")
        if self.kl:
            self._declare(needs=self.needs | {"ref_drift", "std", "sqrt_dt"}, needs_reference=True)

    def of_ratio(self, batch: Steps, advantage: Tensor) -> tuple[Tensor, Metrics]:
        """See RatioObjective."""
        change = log_ratio(batch)
        ratio = change.exp()
        loss = clipped_surrogate(ratio, advantage, self.clip)
        return self.with_kl(batch, loss, ratio_metrics(ratio, change, self.clip))

    def with_kl(self, batch: Steps, loss: Tensor, metrics: Metrics) -> tuple[Tensor, Metrics]:
        """Add the KL to the reference, if it has a weight."""
        if not self.kl:
            return loss, metrics
        kl = self.divergence(batch)
        return loss + self.kl * kl, metrics | {"kl": kl.detach()}

    def divergence(self, batch: Steps) -> Tensor:
        """(N,) KL of each step to the reference's, per element."""
        drift = given(batch.ref_drift, "ref_drift", "from which the KL to the reference is formed")
        scale = given(batch.std, "std", "which scales the KL")
        if self.kl_scale == "rate":
            scale = scale / given(batch.sqrt_dt, "sqrt_dt", "which scales the KL")
        return drift / (2 * scale.square())
