"""DDPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from diffalign.objectives.base import Metrics
from diffalign.objectives.ratio import RatioObjective, clipped_surrogate, log_ratio, ratio_metrics
from diffalign.objectives.steps import Steps, online_objectives


@online_objectives.register("ddpo")
@dataclass(frozen=True, kw_only=True)
class DDPO(RatioObjective):
    """Clipped policy gradient on every denoising step (DDPO-IS, arXiv:2305.13301, section 4.3).

    loss = max(-A r, -A clamp(r, 1 - clip, 1 + clip)). Its advantages are those of rule ``ddpo``, by the
    running statistics of each prompt.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2305.13301"

    def of_ratio(self, batch: Steps, advantage: Tensor) -> tuple[Tensor, Metrics]:
        """See RatioObjective."""
        change = log_ratio(batch)
        ratio = change.exp()
        return clipped_surrogate(ratio, advantage, self.clip), ratio_metrics(ratio, change, self.clip)
