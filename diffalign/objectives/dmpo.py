"""DMPO: divergence minimisation."""

from __future__ import annotations

from dataclasses import dataclass
from math import log, log1p
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from diffalign.objectives.base import objectives
from diffalign.objectives.pair_objective import PairObjective


@objectives.register("dmpo")
@dataclass(frozen=True, kw_only=True)
class DMPO(PairObjective):
    """Reverse KL from the policy's preference to the label's (DMPO, arXiv:2507.07510).

    loss = KL(Bernoulli(sigma(z)) || Bernoulli(1 - alpha)) with the canonical logit z of a pair. Being
    reverse, it seeks one mode: beyond z = log((1 - alpha) / alpha) it pulls back. A soft label mixes both
    directions.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2507.07510"

    alpha: float = 0.01
    """Share of wrong labels that is assumed; in (0, 1/2)."""

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        self._require(0 < self.alpha < 0.5, "alpha", "above 0 and below 0.5")

    def of_logit(self, z: Tensor) -> Tensor:
        """See PairObjective.of_logit."""
        p, q = torch.sigmoid(z), torch.sigmoid(-z)
        # the vanishing probability multiplies the growing log: softplus keeps that finite
        return p * (-F.softplus(-z) - log1p(-self.alpha)) + q * (-F.softplus(z) - log(self.alpha))
