"""Robust DPO: unbiased under a known share of flipped labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from diffalign.objectives.base import objectives
from diffalign.objectives.pair_objective import PairObjective


@objectives.register("rdpo")
@dataclass(frozen=True, kw_only=True)
class RDPO(PairObjective):
    """DPO corrected for flips (arXiv:2403.00409): its mean over flipped labels is dpo on true ones.

    loss = ((1 - epsilon) l(z) - epsilon l(-z)) / (1 - 2 epsilon), l(z) = -log sigma(z). It has no floor: the
    slope tends to -epsilon / (1 - 2 epsilon) for large z, so a pair is pushed apart for ever, the faster the
    larger epsilon. Keep epsilon at the true rate or below; cdpo is the one with a floor.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2403.00409"

    epsilon: float = 0.1
    """Share of labels that are flipped, in [0, 0.5): at one half nothing can be learnt."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self._require(0 <= self.epsilon < 0.5, "epsilon", "in [0, 0.5)")

    def of_logit(self, z: Tensor) -> Tensor:
        """See PairObjective.of_logit."""
        e = self.epsilon
        return ((1 - e) * F.softplus(-z) - e * F.softplus(z)) / (1 - 2 * e)
