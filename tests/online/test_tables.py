"""Rows are shared out whole: every row once, units never torn apart, processes even."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor

from diffalign.online.tables import NoisedTable, StepTable, balanced, joined, shared_out
from tests.online.by_hand import latents


def table(unit: list[int], first: int = 0) -> NoisedTable:
    """Rows whose clean latents count from ``first``."""
    n = len(unit)
    rows = torch.arange(n)
    return NoisedTable(
        unit=torch.tensor(unit, dtype=torch.long), prompt=rows * 0, weight=torch.ones(n),
        x0=latents(*(first + i for i in range(n))) if n else torch.zeros(0, 2, 2, 2),
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


# ---------------------------------------------------------------------- two processes


def work(rank: int, port: int, counts: list[int], out: str) -> None:
    from accelerate import Accelerator

    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=len(counts)
    )
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == len(counts)
    own = table([i // 2 for i in range(2 * counts[rank])], first=100 * rank)
    found = balanced(own, accelerator)
    torch.save({"rows": rows(found), "unit": found.unit, "weight": found.weight}, f"{out}/{rank}.pt")
    torch.distributed.destroy_process_group()


def shared(counts: list[int], out: Path) -> list[dict[str, Tensor]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(work, args=(port, counts, str(out)), nprocs=len(counts))
    return [torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(len(counts))]


@pytest.mark.slow
@pytest.mark.parametrize("counts", [[5, 0], [0, 0]])
def test_two_processes_get_an_even_share(counts: list[int], tmp_path: Path) -> None:
    found = shared(counts, tmp_path)
    held = [r for f in found for r, w in zip(f["rows"], f["weight"].tolist(), strict=True) if w]
    assert sorted(held) == list(range(2 * counts[0]))
    assert len({len(f["rows"]) for f in found}) == 1  # so that both make the same passes
    if sum(counts):
        assert [int(f["weight"].sum()) for f in found] == [6, 4]
        assert all(len(f["unit"].unique()) == 3 for f in found)
