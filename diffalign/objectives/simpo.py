"""SimPO: no reference, and a margin that every pair must reach."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from diffalign.objectives.base import objectives
from diffalign.objectives.pair_objective import PairObjective


@objectives.register("simpo")
@dataclass(frozen=True, kw_only=True)
class SimPO(PairObjective):
    """loss = -log sigma(-(beta / 2) w (e_w - e_l) - gamma), without a reference (SimPO, arXiv:2405.14734, eq.
    6).

    The mean error of an image is already free of its size, so there is no length to divide by. Nothing
    anchors the policy: keep runs short, or add an sft or anchor term.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2405.14734"
    needs_reference: ClassVar[bool] = False

    beta: float = 500.0
    """Steepness, in the convention named below. Errors of two images differ by far more than error gaps, so
    it is smaller than with a reference.
    """
    gamma: float = 0.5
    """Margin of the logit that is asked of every pair, at least 0."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self._require(0 <= self.gamma < math.inf, "gamma", "at least 0 and finite")

    def of_logit(self, z: Tensor) -> Tensor:
        """See PairObjective.of_logit; the side that wins must lead by gamma."""
        return F.softplus(self.gamma - z)
