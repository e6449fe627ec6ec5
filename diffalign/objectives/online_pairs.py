"""Offline objectives on the policy's own pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from diffalign.objectives.base import Denoised, Metrics, Objective, ReduceMean, State
from diffalign.objectives.steps import BatchKind, OnlineObjective, online_objectives

FILLED = frozenset({"score", "weight", "tensors"})
"""What fresh pictures can be given."""


@online_objectives.register("online_pairs")
@dataclass(frozen=True, kw_only=True)
class OnlinePairs(OnlineObjective[Denoised]):
    """Any pair, list, label or winner objective on fresh pictures (online DPO, arXiv:2402.04792).

    The pictures of a prompt are scored and put into pairs by a rule (or a list, or likes), noised and trained
    on as a data set would be.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2402.04792"
    batch: ClassVar[BatchKind] = "pairs"

    objective: Objective
    """The offline objective."""
    rule: str = "best_worst"
    """How a prompt's pictures become pairs; a rule of diffalign score --pairs."""

    def __post_init__(self) -> None:
        """Take over what the objective declares."""
        missing = sorted(set(self.objective.needs) - FILLED)
        if missing:
            raise ValueError(f"the objective needs {', '.join(missing)}, which fresh pictures do not have")
        self._declare(needs=self.objective.needs, needs_reference=self.objective.needs_reference)

    def loss(
        self, batch: Denoised, reduce_mean: ReduceMean = lambda x: x, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        """See Objective.loss."""
        return self.objective.loss(batch, reduce_mean, state)

    def units(self, batch: Denoised, values: Tensor) -> Tensor:
        """See Objective.units."""
        return self.objective.units(batch, values)
