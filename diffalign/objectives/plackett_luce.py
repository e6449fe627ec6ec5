"""Plackett-Luce: the likelihood of a whole ranking."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffalign.objectives.base import DataKind, Denoised, Metrics, Objective, ReduceMean, State, objectives
from diffalign.objectives.beta import BetaConvention, canonical_beta
from diffalign.objectives.lists import list_units, membership


@objectives.register("plackett_luce")
@dataclass(frozen=True, kw_only=True)
class PlackettLuce(Objective):
    """loss = sum_j [log sum_{i not above j} exp(u_i) - u_j], u = beta s, over the images of a ranking by
    descending score (the Plackett-Luce form of DPO, arXiv:2305.18290, appendix A.3).

    At two images it is dpo. Images of equal score share a place: the mean of their terms, each against all of
    them and those below, which at two images is dpo on a tie. Lists may differ in length.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2305.18290"
    data: ClassVar[DataKind] = "ranking"
    needs: ClassVar[frozenset[str]] = frozenset({"score"})

    beta: float = 2000.0
    """Strength of the pull to the reference, in the convention named below; 2000 to 5000 are usual."""
    beta_convention: BetaConvention = "canonical"
    """What beta is stated in: canonical (mean error, 1/2 kept) or the name of a paper's or script's
    convention.
    """

    def __post_init__(self) -> None:
        """Check the range of beta."""
        self._require(0 < self.beta < math.inf, "beta", "above 0 and finite (2000 is usual)")

    def loss(
        self, batch: Denoised, reduce_mean: ReduceMean = lambda x: x, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        """(L,) losses of L rankings; see Objective.loss.

        Raises:
            ValueError: the batch has no scores, or a ranking has one image only.
        """
        if batch.score is None:
            raise ValueError("plackett_luce needs the scores of a ranking: the batch has none")
        u = -0.5 * canonical_beta(self.beta, self.beta_convention) * batch.gap()  # (N,)
        lists = membership(batch)  # (L, N)
        same = batch.group[:, None] == batch.group  # (N, N)
        ahead = batch.score[:, None] - batch.score  # (N, N): by how much row i is above row j
        rivals = u.expand(len(u), -1).masked_fill(~(same & (ahead >= 0)), -math.inf)
        term = (torch.logsumexp(rivals, 1) - u) / (same & (ahead == 0)).sum(1)  # (N,)
        return lists.to(u.dtype) @ term, self._metrics(batch, u.detach(), lists, same, ahead)

    def units(self, batch: Denoised, values: Tensor) -> Tensor:
        """See Objective.units."""
        return list_units(batch, values)

    def _metrics(self, batch: Denoised, u: Tensor, lists: Tensor, same: Tensor, ahead: Tensor) -> Metrics:
        """(L,) share of rightly ordered couples (half for equal u; NaN without order), and mean lead."""
        above = (same & (ahead > 0)).to(u.dtype)
        lead = u[:, None] - u
        right = (lead > 0).to(u.dtype) + 0.5 * (lead == 0).to(u.dtype)
        rows = lists.to(u.dtype)
        couples = rows @ above.sum(1)
        accuracy = rows @ (above * right).sum(1) / couples
        return {
            "accuracy": accuracy,
            "margin": rows @ (above * lead).sum(1) / couples,
            "gap": list_units(batch, batch.gap().detach()),
        }
