"""SPPO: each side's score is regressed to its win probability."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from diffalign.objectives.base import objectives
from diffalign.objectives.pair_objective import ScoreObjective


@objectives.register("sppo")
@dataclass(frozen=True, kw_only=True)
class SPPO(ScoreObjective):
    """loss = (u_w - 1/2)^2 + (u_l + 1/2)^2, u = beta s (SPPO, arXiv:2405.00675, for hard labels).

    The paper's form with s and 1/(2 beta) is this divided by beta^2, whose gradients vanish at the betas of
    diffusion models. A soft label p moves both targets to +-(p - 1/2), the win probability less one half.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2405.00675"

    def of_scores(self, u_w: Tensor, u_l: Tensor) -> Tensor:
        """See ScoreObjective.of_scores."""
        return (u_w - 0.5).square() + (u_l + 0.5).square()
