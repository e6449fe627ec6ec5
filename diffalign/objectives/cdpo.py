"""Conservative DPO: label smoothing for a known share of flipped labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from diffalign.objectives.base import objectives
from diffalign.objectives.pair_objective import PairObjective


@objectives.register("cdpo")
@dataclass(frozen=True, kw_only=True)
class CDPO(PairObjective):
    """DPO that takes every label to be wrong with probability epsilon (conservative DPO).

    loss = -(1 - epsilon) log sigma(z) - epsilon log sigma(-z); least at sigma(z) = 1 - epsilon, so that no
    pair is pushed apart for ever. With epsilon = 0 it is dpo.
    """

    paper: ClassVar[str] = "https://ericmitchell.ai/cdpo.pdf"

    epsilon: float = 0.1
    """Share of labels that are wrong, in [0, 0.5)."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self._require(0 <= self.epsilon < 0.5, "epsilon", "in [0, 0.5)")

    def of_logit(self, z: Tensor) -> Tensor:
        """See PairObjective.of_logit."""
        return (1 - self.epsilon) * F.softplus(-z) + self.epsilon * F.softplus(z)
