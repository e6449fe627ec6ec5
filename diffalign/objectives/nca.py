"""NCA: noise contrastive alignment of a pair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from diffalign.objectives.base import objectives
from diffalign.objectives.pair_objective import ScoreObjective


@objectives.register("nca")
@dataclass(frozen=True, kw_only=True)
class NCA(ScoreObjective):
    """loss = -log sigma(u_w) - (log sigma(-u_w) + log sigma(-u_l)) / 2, u = beta s (NCA,
    arXiv:2402.05369, for two answers).

    The winner's own score is held: its pull ends at u_w = log 2, where dpo would let both errors rise.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2402.05369"

    def of_scores(self, u_w: Tensor, u_l: Tensor) -> Tensor:
        """See ScoreObjective.of_scores."""
        return F.softplus(-u_w) + 0.5 * (F.softplus(u_w) + F.softplus(u_l))
