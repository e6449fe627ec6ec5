"""Rows to train on, and how they are shared out over optimizer steps and passes of the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from diffalign.diffusion.corrupt import draw_seed

T = TypeVar("T", bound="Table")
MADE = frozenset({"x", "sides", "old_logp", "mean", "x0"})
"""Fields that the network made."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """N rows on the host; every field that is a tensor has N entries. Rows of a unit are never torn apart."""

    unit: Tensor
    """(N,) int64 rows with the same number go through the network together."""
    prompt: Tensor
    """(N,) int64 place of the prompt in the iteration."""
    weight: Tensor
    """(N,) weight of the row; 0 where its rewards were not finite."""

    def take(self, rows: Tensor) -> Self:
        """Some of the rows."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v[rows] for k, v in tensors.items() if isinstance(v, Tensor)})

    def __len__(self) -> int:
        return len(self.unit)


@dataclass(frozen=True, kw_only=True)
class StepTable(Table):
    """Recorded steps."""

    x: Tensor
    """(N, C, h, w) where a step starts."""
    sides: Tensor
    """(N, S, C, h, w) next latents whose probability is asked: one, or winner and loser of a pair."""
    step: Tensor
    """(N,) int64 step of the schedule."""
    image: Tensor
    """(N,) int64 picture, among those of all processes."""
    role: Tensor
    """(N,) int64 +1 and -1 for rows that are sides of a pair, else 0."""
    advantage: Tensor | None = None
    """(N,)."""
    old_logp: Tensor | None = None
    """(N,) under the policy that made the rollout."""
    mean: Tensor | None = None
    """(N, C, h, w) mean under that policy."""


@dataclass(frozen=True, kw_only=True)
class NoisedTable(Table):
    """Clean latents that are noised again."""

    x0: Tensor
    """(N, C, h, w) scaled latents."""
    t: Tensor
    """(N,) times."""
    noise: Tensor
    """(N,) int64 seeds of the noise."""
    group: Tensor
    """(N,) int64 comparison unit, or prompt."""
    role: Tensor
    """(N,) int64 +1 preferred, -1 dispreferred, 0 where scores say it."""
    score: Tensor
    """(N,) advantage, or score in a ranking."""


def finite(table: T) -> T:
    """With zeros in all rows of weight 0: what was NaN there would be NaN times 0 in the gradient."""
    counts = table.weight != 0

    def clean(value: Tensor) -> Tensor:
        return torch.where(counts.view(-1, *[1] * (value.ndim - 1)), value, torch.zeros_like(value))

    tensors = {f.name: getattr(table, f.name) for f in fields(table) if f.name in MADE}
    return replace(table, **{k: clean(v) for k, v in tensors.items() if v is not None})


def shared_out(table: T, updates: int, micro_batch: int, seed: int) -> list[list[T]]:
    """Updates of micro-batches, each of whole units in a new order.

    Args:
        table: N rows.
        updates: optimizer steps; never more than there are units.
        micro_batch: rows of a pass; a unit of more rows has a pass of its own.
        seed: of the order.
    """
    numbers: Sequence[int] = table.unit.unique().tolist()
    generator = torch.Generator().manual_seed(draw_seed("rows", seed))
    order = torch.tensor(numbers)[torch.randperm(len(numbers), generator=generator)]
    parts = order.tensor_split(min(updates, len(numbers)))
    return [[table.take(rows) for rows in _passes(table, part, micro_batch)] for part in parts]


def _passes(table: Table, units: Tensor, micro_batch: int) -> list[Tensor]:
    """Rows of each pass: as many whole units as fit."""
    sizes = torch.bincount(table.unit)
    places: dict[int, list[int]] = {int(u): [] for u in units}
    for row, unit in enumerate(table.unit.tolist()):
        if unit in places:
            places[unit].append(row)
    found: list[list[int]] = []
    for unit in units.tolist():
        if found and len(found[-1]) + int(sizes[unit]) <= micro_batch:
            found[-1] += places[unit]
        else:
            found.append(list(places[unit]))
    return [torch.tensor(rows) for rows in found]


def balanced(table: T, accelerator: Accelerator) -> T:
    """This process's even share of the units of all processes, whose numbers differ; all take part.

    A process with a unit less has one again at weight 0, so that all make the same passes.

    Returns:
        A table without rows where no process has any.
    """
    if accelerator.num_processes == 1:
        return table
    tables: list[T] = gather_object([table])
    whole = joined(tables)
    numbers = whole.unit.unique()
    parts = numbers.tensor_split(accelerator.num_processes)
    own = parts[accelerator.process_index]
    mine = whole.take(torch.isin(whole.unit, own))
    if len(own) == len(parts[0]):
        return mine
    filler: T = whole.take(whole.unit == numbers[0])
    return joined([mine, replace(filler, weight=torch.zeros_like(filler.weight))])


def joined(tables: Sequence[T]) -> T:
    """Rows of all tables, whose units and groups are told apart."""
    moved, unit, group = [], 0, 0
    for table in tables:
        shifted = replace(table, unit=table.unit + unit)
        if isinstance(shifted, NoisedTable):
            shifted = replace(shifted, group=shifted.group + group)
            group += int(shifted.group.max() - group + 1) if len(shifted) else 0
        moved.append(shifted)
        unit += int(table.unit.max()) + 1 if len(table) else 0
    first = moved[0]
    names = [f.name for f in fields(first) if isinstance(getattr(first, f.name), Tensor)]
    return replace(first, **{name: torch.cat([getattr(t, name) for t in moved]) for name in names})
