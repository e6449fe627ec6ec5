"""What the rows of a training batch are conditioned on besides their prompts: people, or directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from diffalign.data.loader import Batch
from diffalign.policy.family import Cond
from diffalign.policy.people import USER_SCALE, USER_TOKENS


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What the rows of a batch are conditioned on of people."""

    own: Cond
    """Of those who judged: tokens (U, K, D), or one set for each row where units differ in size, and (N,)
    scales."""
    other: Cond | None
    """Of another person for each unit; None unless an objective compares with one."""
    disagrees: Tensor
    """(N,) 1 where the other person is known to see the unit the other way round."""
    losses: dict[str, Tensor]
    """Scalar losses of the tokens alone, times their weights."""


class Conditioner(Protocol):
    """What a trainer asks of those who condition its batches."""

    contrasts: bool
    """Whether errors under another condition's tokens need a gradient."""

    def conditions(self, batch: Batch, units: Sequence[int]) -> Conditions:
        """Tokens of a batch that is on the host; ``units`` are the seeds of its rows' comparison units."""

    def tokens(self, name: str) -> Tensor:
        """(K, D) tokens of somebody, or of a direction, for pictures."""

    def export(self, folder: Path) -> Path:
        """Write what generation needs into a new folder of an export, and return it."""


def first_rows(group: Tensor) -> list[int]:
    """First row of each of U units; the rows of a unit are adjacent."""
    found = group.tolist()
    return [i for i, unit in enumerate(found) if i == 0 or unit != found[i - 1]]


def unit_conditions(
    group: Tensor,
    own: Tensor,
    other: Tensor | None = None,
    against: Tensor | None = None,
    losses: dict[str, Tensor] | None = None,
) -> Conditions:
    """Conditions of N rows.

    Args:
        group: (N,) unit of each row, on the host.
        own: (U, K, D) tokens of the units.
        other: the same of those whom they are compared with.
        against: (U,) bool, units that the other is known to see the other way round.
        losses: of the tokens alone.
    """
    disagrees = torch.zeros(len(own)) if against is None else against.float()
    return Conditions(
        own=_rows(own, group),
        other=None if other is None else _rows(other, group),
        disagrees=disagrees[group].to(own.device),
        losses=losses or {},
    )


def _rows(tokens: Tensor, group: Tensor) -> Cond:
    """Conditioning of N rows on (U, K, D) tokens of their units, one for each unit where sizes allow."""
    sizes = group.bincount()
    alike = bool((sizes == sizes[0]).all())
    own = tokens if alike else tokens[group.to(tokens.device)]
    return {USER_TOKENS: own, USER_SCALE: torch.ones(len(group), device=tokens.device)}
