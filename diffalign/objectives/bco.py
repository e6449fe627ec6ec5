"""BCO: a binary classifier of winners and losers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from diffalign.objectives.base import Denoised, Metrics, ReduceMean, State, objectives
from diffalign.objectives.pair_objective import ScoreObjective
from diffalign.objectives.pairs import pair_metrics
from diffalign.objectives.running import running_mean


@objectives.register("bco")
@dataclass(frozen=True, kw_only=True)
class BCO(ScoreObjective):
    """loss = -log sigma(u_w - delta) - log sigma(-(u_l - delta)), u = beta s (BCO, arXiv:2404.04656).

    delta, the mean score of winners and losers alike, keeps the classifier's two halves in balance when all
    scores drift. It is a mean over all processes and carries no gradient.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2404.04656"
    coupled: ClassVar[bool] = True

    shift: Literal["running", "none"] = "running"
    """running: delta is a running mean over the steps; none: delta is 0, the plain pair form."""
    decay: float = 0.99
    """What the running mean keeps of itself at each batch, in [0, 1)."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self._require(0 <= self.decay < 1, "decay", "in [0, 1)")
        self._declare(coupled=self.shift == "running")

    def of_scores(self, u_w: Tensor, u_l: Tensor) -> Tensor:
        """See ScoreObjective.of_scores; of shifted scores."""
        return F.softplus(-u_w) + F.softplus(u_l)

    def loss(
        self, batch: Denoised, reduce_mean: ReduceMean = lambda x: x, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        """(P,) losses of P pairs; see Objective.loss."""
        pairs = self.pairs_of(batch)
        u_w, u_l = pairs.scores(self.canonical)  # (P,) each
        delta = torch.zeros_like(u_w)
        if self.shift == "running":
            where, both = self.units(batch, batch.counted()), 0.5 * (u_w + u_l)
            delta = delta + running_mean(both, where, "bco.shift", self.decay, reduce_mean, state)
        loss = pairs.expected(
            self.of_scores(u_w - delta, u_l - delta), self.of_scores(u_l - delta, u_w - delta)
        )
        return loss, pair_metrics(pairs, u_w - u_l) | {"shift": delta}
