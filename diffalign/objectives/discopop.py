"""DiscoPOP: the log-ratio modulated loss that a search found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from diffalign.objectives.base import objectives
from diffalign.objectives.pair_objective import PairObjective


@objectives.register("discopop")
@dataclass(frozen=True, kw_only=True)
class DiscoPOP(PairObjective):
    """loss = (1 - sigma(z / tau)) l(z) + sigma(z / tau) exp(-z), l(z) = -log sigma(z) (DiscoPOP,
    arXiv:2406.08414).

    It is not convex and steeper than dpo between -tau and tau. The second term is computed as one
    exponential: exp(-z) alone overflows where sigma(z / tau) is zero.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2406.08414"

    tau: float = 0.05
    """Width of the passage between the two parts, in (0, 1): from 1 on there is no bound to the left."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self._require(0 < self.tau < 1, "tau", "in (0, 1) (the paper's is 0.05)")

    def of_logit(self, z: Tensor) -> Tensor:
        """See PairObjective.of_logit."""
        exponential = torch.exp(F.logsigmoid(z / self.tau) - z)
        return torch.sigmoid(-z / self.tau) * F.softplus(-z) + exponential
