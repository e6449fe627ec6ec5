"""Plackett-Luce: the likelihood of a whole ranking."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffalign.objectives.base import DataKind, Denoised, Metrics, Objective, ReduceMean, State, objectives
from diffalign.objectives.beta import BetaConvention, canonical_beta
from diffalign.objectives.lists import Lists, list_units, split_lists


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
        lists = split_lists(batch)
        u = canonical_beta(self.beta, self.beta_convention) * lists.log_ratio  # (N,)
        itself = torch.eye(len(u), dtype=torch.bool, device=u.device)
        ahead = batch.score[:, None] - batch.score  # (N, N): by how much row i is above row j
        rivals = (lists.same & (ahead >= 0)) | itself
        level = (lists.same & (ahead == 0)) | itself
        chosen_of = torch.logsumexp(u.expand(len(u), -1).masked_fill(~rivals, -math.inf), 1)
        above = lists.same & (ahead > 0)
        return lists.sum((chosen_of - u) / level.sum(1)), _metrics(lists, u.detach(), above)

    def units(self, batch: Denoised, values: Tensor) -> Tensor:
        """See Objective.units."""
        return list_units(batch, values)


def _metrics(lists: Lists, u: Tensor, above: Tensor) -> Metrics:
    """(L,) share of rightly ordered couples and their mean lead, NaN where all images are level."""
    lead = u[:, None] - u
    right = (lead > 0).to(u.dtype) + 0.5 * (lead == 0).to(u.dtype)
    couples = above.to(u.dtype)
    count = lists.sum(couples)
    return {"accuracy": lists.sum(right * couples) / count, "margin": lists.sum(lead * couples) / count}
