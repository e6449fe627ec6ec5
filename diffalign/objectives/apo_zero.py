"""Anchored preference optimisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from diffalign.objectives.base import objectives
from diffalign.objectives.pair_objective import ScoreObjective


@objectives.register("apo_zero")
@dataclass(frozen=True, kw_only=True)
class APOZero(ScoreObjective):
    """Say where each side is to go, not only how far apart (APO, arXiv:2408.06266, eq. 7 and 8).

    zero: loss = 1 - sigma(u_w) + sigma(u_l), u = beta s: winners up, losers down.
    down: loss = sigma(u_w) + 1 - sigma(u_w - u_l): both down, losers further.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2408.06266"

    anchor: Literal["zero", "down"] = "zero"
    """zero where winners are better than what the model makes, down where they are worse."""

    def of_scores(self, u_w: Tensor, u_l: Tensor) -> Tensor:
        """See ScoreObjective.of_scores; 1 - sigma(x) = sigma(-x) keeps its digits."""
        if self.anchor == "zero":
            return torch.sigmoid(-u_w) + torch.sigmoid(u_l)
        return torch.sigmoid(u_w) + torch.sigmoid(u_l - u_w)
