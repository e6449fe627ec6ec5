"""Rows are shared out whole: every row once, units never torn apart, processes even."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from diffalign.online import tables
from diffalign.online.tables import NoisedTable, StepTable, balanced, finite, joined, shared_out
from tests.online.by_hand import latents


def table(unit: list[int], first: int = 0) -> NoisedTable:
    """Rows whose clean latents count from ``first``."""
    n = len(unit)
    rows = torch.arange(n)
    return NoisedTable(
        unit=torch.tensor(unit, dtype=torch.long), prompt=rows * 0, weight=torch.ones(n),
        x0=latents(*(float(first + i) for i in range(n))) if n else torch.zeros(0, 2, 2, 2),
        t=torch.full((n,), 0.5), noise=(1 << 60) + rows + first, group=torch.tensor(unit, dtype=torch.long),
        role=rows * 0, score=torch.zeros(n),
    )  # fmt: skip


def rows(part: NoisedTable) -> list[int]:
    return part.x0[:, 0, 0, 0].int().tolist()


@pytest.mark.parametrize(("updates", "micro"), [(1, 4), (2, 4), (3, 100), (50, 1)])
def test_every_row_comes_once_and_units_stay_whole(updates: int, micro: int) -> None:
    whole = table([0, 1, 0, 1, 2, 2, 3, 3, 4, 4])
    shared = shared_out(whole, updates, micro, seed=3)
    assert len(shared) == min(updates, 5)
    assert sorted(i for parts in shared for p in parts for i in rows(p)) == list(range(10))
    for parts in shared:
        for part in parts:
            assert len(part) <= max(micro, 2)
            for unit in part.unit.unique():
                assert int((part.unit == unit).sum()) == 2
    sizes = [sum(len(p) for p in parts) for parts in shared]
    assert max(sizes) - min(sizes) <= 2


def test_the_order_hangs_on_the_seed_alone() -> None:
    whole = table(list(range(12)))

    def order(seed: int) -> list[int]:
        return [i for parts in shared_out(whole, 2, 4, seed) for p in parts for i in rows(p)]

    assert order(1) == order(1) != order(2)


def test_joined_tables_keep_units_and_groups_apart() -> None:
    whole = joined([table([0, 0, 1, 1]), table([]), table([0, 0], first=4)])
    assert whole.unit.tolist() == whole.group.tolist() == [0, 0, 1, 1, 2, 2]
    assert rows(whole) == list(range(6))
    assert whole.noise.tolist() == [(1 << 60) + i for i in range(6)]


def test_a_table_takes_rows_of_all_its_tensors() -> None:
    part = table([0, 1, 2]).take(torch.tensor([2, 0]))
    assert rows(part) == [2, 0]
    assert part.unit.tolist() == [2, 0]
    steps = StepTable(
        unit=torch.arange(2), prompt=torch.zeros(2).long(), weight=torch.ones(2), x=latents(0, 1),
        sides=latents(2, 3)[:, None], step=torch.arange(2), image=torch.arange(2), role=torch.zeros(2).long(),
    ).take(torch.tensor([1]))  # fmt: skip
    assert steps.advantage is None
    assert steps.sides.shape == (1, 1, 2, 2, 2)


def test_rows_that_do_not_count_hold_no_nan() -> None:
    broken = table([0, 1, 2])
    broken.x0[1] = torch.nan
    broken.weight[1] = 0
    clean = finite(broken)
    assert clean.x0[:, 0, 0, 0].tolist() == [0, 0, 2]
    assert clean.noise.tolist() == broken.noise.tolist()
    broken.weight[1] = 1
    assert bool(finite(broken).x0[1].isnan().all())


# ---------------------------------------------------------------------- two processes


def shares(counts: list[int], monkeypatch: pytest.MonkeyPatch) -> list[NoisedTable]:
    """What each process holds, which has so many units of two rows before."""
    before = [table([i // 2 for i in range(2 * n)], first=100 * rank) for rank, n in enumerate(counts)]
    monkeypatch.setattr(tables, "gather_object", lambda own: before)
    world = len(counts)
    every: list[Any] = [SimpleNamespace(num_processes=world, process_index=i) for i in range(world)]
    return [balanced(own, accelerator) for own, accelerator in zip(before, every, strict=True)]


@pytest.mark.parametrize("counts", [[5, 0], [0, 1], [3, 4], [2, 2, 3], [0, 0]])
def test_processes_get_an_even_share(counts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    found = shares(counts, monkeypatch)
    held = [r for f in found for r, w in zip(rows(f), f.weight.tolist(), strict=True) if w]
    assert sorted(held) == [100 * rank + i for rank, n in enumerate(counts) for i in range(2 * n)]
    assert len({len(f) for f in found}) == 1  # so that all make the same passes
    assert all(len(f.unit.unique()) == -(-sum(counts) // len(counts)) for f in found)
    assert all(f.noise.dtype == torch.int64 for f in found)
    for f in found:
        assert f.group.tolist() == f.unit.tolist()


def test_one_process_keeps_its_table() -> None:
    own = table([0, 1])
    alone: Any = SimpleNamespace(num_processes=1, process_index=0)
    assert balanced(own, alone) is own
