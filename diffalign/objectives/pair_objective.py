"""Bases of the pair objectives that are one formula of the logit, or of the two sides' scores."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from diffalign.objectives.base import DataKind, Denoised, Metrics, Objective, ReduceMean, State
from diffalign.objectives.beta import BetaConvention, canonical_beta
from diffalign.objectives.pairs import Pairs, pair_metrics, pair_units, split_pairs


@dataclass(frozen=True, kw_only=True)
class PairObjective(Objective):
    """Expected loss p f(z) + (1 - p) f(-z) of the logit z under the soft label p (1 for a hard label, 1/2 for
    a
    tie); margins are taken off z. Without a reference the errors themselves stand for the error gaps.
    """

    data: ClassVar[DataKind] = "pairs"

    beta: float = 2000.0
    """Strength of the pull to the reference, in the convention named below; 2000 to 5000 are usual."""
    beta_convention: BetaConvention = "canonical"
    """What beta is stated in: canonical (mean error, 1/2 kept) or the name of a paper's or script's
    convention.
    """

    def __post_init__(self) -> None:
        """Check the range of beta."""
        self._require(0 < self.beta < math.inf, "beta", "above 0 and finite (2000 is usual)")

    @property
    def canonical(self) -> float:
        """Beta in the canonical convention."""
        return canonical_beta(self.beta, self.beta_convention)

    @abstractmethod
    def of_logit(self, z: Tensor) -> Tensor:
        """f(z): (P,) losses of pairs whose first side is the better one, by their logits."""

    def pairs_of(self, batch: Denoised) -> Pairs:
        """Winners and losers; an objective without reference never looks at one, also where one is given."""
        return split_pairs(batch if self.needs_reference else replace(batch, ref_error=None))

    def loss(
        self, batch: Denoised, reduce_mean: ReduceMean = lambda x: x, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        """(P,) losses of P pairs; see Objective.loss."""
        pairs = self.pairs_of(batch)
        z = pairs.logit(self.canonical)  # (P,)
        return pairs.soften(self.of_logit, z), pair_metrics(pairs, z)

    def units(self, batch: Denoised, values: Tensor) -> Tensor:
        """See Objective.units."""
        return pair_units(batch, values)


@dataclass(frozen=True, kw_only=True)
class ScoreObjective(PairObjective):
    """The same for losses that see each side's own score beta s, not their difference alone."""

    @abstractmethod
    def of_scores(self, u_w: Tensor, u_l: Tensor) -> Tensor:
        """f(u_w, u_l): (P,) losses by the scores u = beta s of the better and the worse side."""

    def of_logit(self, z: Tensor) -> Tensor:
        """With the logit shared out evenly over the two sides."""
        return self.of_scores(0.5 * z, -0.5 * z)

    def loss(
        self, batch: Denoised, reduce_mean: ReduceMean = lambda x: x, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        """(P,) losses of P pairs; see Objective.loss."""
        pairs = self.pairs_of(batch)
        u_w, u_l = pairs.scores(self.canonical)  # (P,) each
        loss = pairs.expected(self.of_scores(u_w, u_l), self.of_scores(u_l, u_w))
        return loss, pair_metrics(pairs, pairs.logit(self.canonical))
