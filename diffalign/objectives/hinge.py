"""Hinge on the preference margin (SLiC)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from diffalign.objectives.base import objectives
from diffalign.objectives.pair_objective import PairObjective


@objectives.register("hinge")
@dataclass(frozen=True, kw_only=True)
class Hinge(PairObjective):
    """loss = max(0, 1 - z): pairs that lead by 1 are left alone (SLiC-HF, arXiv:2305.10425, with the
    implicit reward for the likelihood).
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2305.10425"

    def of_logit(self, z: Tensor) -> Tensor:
        """See PairObjective.of_logit."""
        return F.relu(1 - z)
