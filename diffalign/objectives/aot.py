"""AOT: the winners' scores as a whole are to dominate the losers'."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from diffalign.objectives.base import Denoised, Metrics, ReduceMean, State, objectives
from diffalign.objectives.pair_objective import PairObjective
from diffalign.objectives.pairs import Pairs, pair_metrics


@objectives.register("aot")
@dataclass(frozen=True, kw_only=True)
class AOT(PairObjective):
    """Stochastic dominance by sorting (AOT, arXiv:2406.05882): the k-th smallest score of one
    sample is compared with the k-th smallest of the other, loss = -(1 - epsilon) l(d_k) - epsilon l(-d_k).

    The samples are the pairs of this process's part of the batch, so it wants large parts. Scores of
    different t differ in scale: the noisiest and cleanest pairs are the ends of both. The loss of rank k is
    given to the pair whose winner (or policy lead) has it, with that pair's weight and soft label.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2406.05882"
    coupled: ClassVar[bool] = True

    compare: Literal["sides", "reference"] = "sides"
    """sides: winners' scores with losers' (the unpaired form); reference: the policy's lead in each pair with
    the reference's (the paired form).
    """
    epsilon: float = 0.0
    """Share of labels that are wrong, in [0, 0.5)."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self._require(0 <= self.epsilon < 0.5, "epsilon", "in [0, 0.5)")

    def of_logit(self, z: Tensor) -> Tensor:
        """See PairObjective.of_logit."""
        return (1 - self.epsilon) * F.softplus(-z) + self.epsilon * F.softplus(z)

    def loss(
        self, batch: Denoised, reduce_mean: ReduceMean = lambda x: x, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        """(P,) losses of P pairs; see Objective.loss."""
        pairs = self.pairs_of(batch)
        upper, lower = self._samples(pairs)  # (P,) each
        counts = self.units(batch, batch.counted())  # (P,): pairs of weight 0 take the last ranks of both
        rank = torch.argsort(_order(upper, counts))  # of each pair
        z = upper - lower[_order(lower, counts)][rank]
        return pairs.soften(self.of_logit, z), pair_metrics(pairs, pairs.logit(self.canonical))

    def _samples(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Scores that are to be large, and those they are measured against."""
        if self.compare == "sides":
            return pairs.scores(self.canonical)
        half = 0.5 * self.canonical
        ref_w, ref_l = pairs.error_w - pairs.gap_w, pairs.error_l - pairs.gap_l
        reference = -half * (pairs.weight_w * ref_w - pairs.weight_l * ref_l).detach()
        return pairs.logit(self.canonical) + reference, reference


def _order(scores: Tensor, counts: Tensor) -> Tensor:
    """(P,) pairs from the smallest score up, those that do not count behind all others."""
    return torch.argsort(torch.where(counts != 0, scores.detach(), torch.inf), stable=True)
