"""RankDPO: rankings with the weights of DCG."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from diffalign.objectives.base import DataKind, Denoised, Metrics, Objective, ReduceMean, State, objectives
from diffalign.objectives.beta import BetaConvention, canonical_beta
from diffalign.objectives.filled import score_of
from diffalign.objectives.lists import Lists, list_units, split_lists


@objectives.register("rankdpo")
@dataclass(frozen=True, kw_only=True)
class RankDPO(Objective):
    """Rank lists by DCG-weighted preferences of all their pairs (RankDPO, arXiv:2410.18013, eq. 5-7).

    loss = sum over i better than j of D_ij l(beta (s_i - s_j)), s = -w(t) a / 2, with
    D_ij = |G_i - G_j| |1 / ln(1 + tau_i) - 1 / ln(1 + tau_j)|, gain G = 2^phi - 1 and rank tau from 1. Equal
    phi weigh nothing and share their mean rank. At two images it is DPO weighted by D.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2410.18013"
    data: ClassVar[DataKind] = "ranking"
    needs: ClassVar[frozenset[str]] = frozenset({"score"})

    beta: float = 5000.0
    """Strength of the pull to the reference, in the convention named below."""
    beta_convention: BetaConvention = "canonical"
    """What beta is stated in; the paper's own formula is paper_sum."""
    ranks: Literal["data", "model"] = "data"
    """Where tau is from: the scores, or the policy's present order (LiPO-lambda, arXiv:2402.01878)."""
    phi: Literal["score", "wins"] = "score"
    """score: the stored scores, shares of won comparisons in [0, 1]; wins: the share of its list that an
    image beats, for scores of any scale."""
    weights: Literal["dcg", "gain", "one"] = "dcg"
    """Of pairs: dcg, as published; gain: |G_i - G_j| alone; one: all alike, dpo on every pair of the list."""
    renormalise: bool = False
    """Bring the mean weight of a list's pairs to 1, so that beta and learning rate are those of dpo."""

    def __post_init__(self) -> None:
        """Check the range of beta."""
        self._require(0 < self.beta < math.inf, "beta", "above 0 and finite (2000 to 5000 are usual)")

    def loss(
        self, batch: Denoised, reduce_mean: ReduceMean = lambda x: x, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        """(U,) losses of U lists; see Objective.loss."""
        lists, score = split_lists(batch), score_of(batch, "rankdpo")
        better = lists.same & (score[:, None] > score[None, :])  # (N, N)
        z = canonical_beta(self.beta, self.beta_convention) * _differences(lists.log_ratio)
        weight = self._weights(lists, score, better)
        right = (z > 0).to(z.dtype) + 0.5 * (z == 0).to(z.dtype)
        found = {"accuracy": right, "margin": z, "pair_weight": weight, "gradient_factor": torch.sigmoid(-z)}
        metrics = {name: _mean(lists, value.detach(), better) for name, value in found.items()}
        return lists.sum(weight * F.softplus(-z)), metrics

    def units(self, batch: Denoised, values: Tensor) -> Tensor:
        """See Objective.units."""
        return list_units(batch, values)

    def _weights(self, lists: Lists, score: Tensor, better: Tensor) -> Tensor:
        """(N, N) weights D, zero where row i is not the better one of a list's two."""
        ranked = score if self.ranks == "data" else lists.log_ratio.detach()
        above = (lists.same & (ranked[:, None] < ranked[None, :])).sum(1)
        level = (lists.same & (ranked[:, None] == ranked[None, :])).sum(1)
        discount = 1 / torch.log1p(1 + above + 0.5 * level).to(score.dtype)  # mean rank of equals
        beaten = better.sum(1) / lists.same.sum(1).clamp(min=1)
        gain = torch.exp2(score if self.phi == "score" else beaten.to(score.dtype)) - 1
        factors = {"dcg": (gain, discount), "gain": (gain,), "one": ()}[self.weights]
        weight = better.to(score.dtype) * math.prod(_differences(f).abs() for f in factors)
        mean = _mean(lists, weight, better)[lists.unit, None]
        return weight / torch.where(mean > 0, mean, torch.ones_like(mean)) if self.renormalise else weight


def _differences(values: Tensor) -> Tensor:
    return values[:, None] - values[None, :]


def _mean(lists: Lists, values: Tensor, chosen: Tensor) -> Tensor:
    """(U,) mean of the chosen (N, N) values of each list; NaN where none is."""
    mask = chosen.to(values.dtype)
    return lists.sum(values * mask) / lists.sum(mask)
