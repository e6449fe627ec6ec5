"""EXO: reverse KL from the policy's preference to the smoothed label."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from diffalign.objectives.base import Denoised, Metrics, ReduceMean, State, objectives
from diffalign.objectives.pair_objective import PairObjective
from diffalign.objectives.pairs import pair_metrics


@objectives.register("exo")
@dataclass(frozen=True, kw_only=True)
class EXO(PairObjective):
    """loss = KL(Bernoulli(sigma(z)) || Bernoulli(q)), q = 1 - epsilon (EXO, arXiv:2402.00856, eq. 16, at two
    answers).

    The reverse direction seeks the mode, where dpo's forward one covers the mass. A soft label p gives
    q = p (1 - epsilon) + (1 - p) epsilon, a tie 1/2: the divergence to the mixed label, not a mean of two.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2402.00856"

    epsilon: float = 0.001
    """Smoothing of the label, in (0, 0.5); at 0 the divergence would be infinite."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self._require(0 < self.epsilon < 0.5, "epsilon", "in (0, 0.5)")

    def of_logit(self, z: Tensor) -> Tensor:
        """See PairObjective.of_logit."""
        return _divergence(z, math.log1p(-self.epsilon), math.log(self.epsilon))

    def loss(
        self, batch: Denoised, reduce_mean: ReduceMean = lambda x: x, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        """(P,) losses of P pairs; see Objective.loss."""
        pairs = self.pairs_of(batch)
        z = pairs.logit(self.canonical)  # (P,)
        q = self.epsilon + (1 - 2 * self.epsilon) * pairs.soft
        return _divergence(z, q.log(), torch.log1p(-q)), pair_metrics(pairs, z)


def _divergence(z: Tensor, log_q: Tensor | float, log_not_q: Tensor | float) -> Tensor:
    right = torch.sigmoid(z) * (F.logsigmoid(z) - log_q)
    return right + torch.sigmoid(-z) * (F.logsigmoid(-z) - log_not_q)
