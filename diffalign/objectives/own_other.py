"""A person's own tokens against another person's, around any pair objective."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from diffalign.objectives.base import DataKind, Denoised, Metrics, Objective, ReduceMean, State, objectives
from diffalign.objectives.dpo import DPO
from diffalign.objectives.filled import extra_of
from diffalign.objectives.pairs import pair_order, split_pairs
from diffalign.objectives.wrapping import adopt


@objectives.register("own_other")
@dataclass(frozen=True, kw_only=True)
class OwnOther(Objective):
    r"""A pair objective for a model of single people, which must also tell its person from another.

    loss = pair + weight (-log sigma(m(own) - m(other))), with m(u) = -(beta / 2) (w e_w(u) - w e_l(u)) under
    the tokens u of the pair's person and of another person; the reference is the same in both and leaves the
    difference. The pair objective within is that of PPD (arXiv:2501.06655) where it is dpo: there the person
    is a condition of the policy alone. A weight of 0 trains nothing more and measures: own-minus-other is the
    negative control, which a model that does not look at the person cannot pass. Soft labels share the term.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2501.06655"
    data: ClassVar[DataKind] = "pairs"
    needs: ClassVar[frozenset[str]] = frozenset({"other_error"})

    pair: Objective = field(default_factory=DPO)
    """The pair objective within: a block with its name and options."""
    weight: float = 0.1
    """Weight of the contrast; 0 only measures it."""
    beta: float = 2000.0
    """Strength of the contrast, in the canonical convention."""
    on: Literal["disagreeing", "all"] = "disagreeing"
    """Pairs that are contrasted: those that the other person is known to see the other way round, or all."""

    def __post_init__(self) -> None:
        """Check ranges, and take over what the objective within declares."""
        self._require(0 <= self.weight < math.inf, "weight", "at least 0 and finite")
        self._require(0 < self.beta < math.inf, "beta", "above 0 and finite (2000 is usual)")
        needs = {"other_error"} | ({"other_disagrees"} if self.weight and self.on == "disagreeing" else set())
        adopt(self, self.pair, needs, reference=False, coupled=False)

    def loss(
        self, batch: Denoised, reduce_mean: ReduceMean = lambda x: x, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        """(P,) losses of P pairs; see Objective.loss."""
        loss, metrics = self.pair.loss(batch, reduce_mean, state)
        apart = own_minus_other(batch, self.beta)  # (P,)
        if self.weight:
            p = split_pairs(batch)
            term = p.expected(F.softplus(-apart), F.softplus(apart)) * self._contrasted(batch)
            loss, metrics = loss + self.weight * term, metrics | {"contrast_term": term.detach()}
        apart = apart.detach()
        beats = (apart > 0).to(apart.dtype) + 0.5 * (apart == 0).to(apart.dtype)
        return loss, metrics | {"own_minus_other": apart, "own_beats_other": beats}

    def units(self, batch: Denoised, values: Tensor) -> Tensor:
        """See Objective.units."""
        return self.pair.units(batch, values)

    def _contrasted(self, batch: Denoised) -> Tensor | float:
        """(P,) 1 at pairs that count."""
        if self.on == "all":
            return 1.0
        disagrees = extra_of(batch, "other_disagrees", "own_other")
        return disagrees.to(batch.error.dtype)[pair_order(batch.group, batch.role)[:, 0]]


def own_minus_other(batch: Denoised, beta: float) -> Tensor:
    """(P,) lead of the pair under its person's tokens less that under another's: above 0 knows its person."""
    other = replace(batch, error=extra_of(batch, "other_error", "own_other"), ref_error=None)
    own = replace(batch, ref_error=None)
    lead, other_lead = (split_pairs(rows).lead(beta) for rows in (own, other))
    return lead - other_lead
