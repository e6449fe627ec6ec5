"""IPO: a regression of the logit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from diffalign.objectives.base import objectives
from diffalign.objectives.pair_objective import PairObjective


@objectives.register("ipo")
@dataclass(frozen=True, kw_only=True)
class IPO(PairObjective):
    """loss = (z - 1/2)^2: the lead is pulled to a set size, not to infinity (IPO, arXiv:2310.12036, eq. 17).

    The paper's (h - 1/(2 beta))^2 is this divided by beta^2, whose gradients are about 1e-6 of a
    log-sigmoid's at the betas of diffusion models. A soft label p moves the target to p - 1/2.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2310.12036"

    def of_logit(self, z: Tensor) -> Tensor:
        """See PairObjective.of_logit."""
        return (z - 0.5).square()
