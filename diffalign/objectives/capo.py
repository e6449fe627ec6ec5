"""CaPO: regression on calibrated reward differences."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from diffalign.objectives.base import DataKind, Denoised, Metrics, Objective, ReduceMean, State, objectives
from diffalign.objectives.beta import BetaConvention, canonical_beta
from diffalign.objectives.filled import score_of
from diffalign.objectives.lists import list_units, split_lists


@objectives.register("capo")
@dataclass(frozen=True, kw_only=True)
class CaPO(Objective):
    """Make implicit reward differences equal to calibrated ones (CaPO, arXiv:2502.02588).

    loss = mean over the pairs of a list of (R_i - R_j - beta (s_i - s_j))^2, s = -w(t) a / 2; a list of two
    is the paper's pair. R is the mean probability of winning against the prompt's other pictures, in [0, 1].
    It needs no winner: R alone orders a list. The paper's w(t) is error_weight sigmoid.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2502.02588"
    data: ClassVar[DataKind] = "ranking"
    needs: ClassVar[frozenset[str]] = frozenset({"score"})

    beta: float = 2000.0
    """Strength of the pull to the reference, in the convention named below."""
    beta_convention: BetaConvention = "canonical"
    """What beta is stated in; without the 1/2 it is diffusers_sd15."""

    def __post_init__(self) -> None:
        """Check the range of beta."""
        self._require(0 < self.beta < math.inf, "beta", "above 0 and finite (2000 to 5000 are usual)")

    def loss(
        self, batch: Denoised, reduce_mean: ReduceMean = lambda x: x, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        """(U,) losses of U lists; see Objective.loss."""
        lists, score = split_lists(batch), score_of(batch, "capo")
        wanted = score[:, None] - score[None, :]  # (N, N), of two rows both orders
        implied = canonical_beta(self.beta, self.beta_convention) * (
            lists.log_ratio[:, None] - lists.log_ratio[None, :]
        )
        same = lists.same.to(implied.dtype)
        pairs = lists.sum(same).clamp(min=1)
        agree = ((wanted * implied > 0).to(same) + 0.5 * (wanted * implied == 0).to(same)) * same
        metrics = {
            "accuracy": lists.sum(agree.detach()) / pairs,
            "margin": lists.sum((implied.abs() * same).detach()) / pairs,
        }
        return lists.sum((wanted - implied).square() * same) / pairs, metrics

    def units(self, batch: Denoised, values: Tensor) -> Tensor:
        """See Objective.units."""
        return list_units(batch, values)
