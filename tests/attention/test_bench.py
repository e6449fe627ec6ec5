"""The benchmark's arithmetic and what it says without a GPU, on tiny shapes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffalign.attention import bench

SIZES = bench.shapes()["SD1.5 N=4096 B=2"]
TINY = replace(SIZES, queries=8, heads=1, width=16, text=5, user=4)
CPU = torch.device("cpu")


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(bench, "shapes", lambda: {"tiny": TINY, "adds": replace(TINY, text=0)})
    monkeypatch.setattr(bench, "copy_rate", lambda device: 1e9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_a_cpu_measures_the_twin_alone_and_says_so(tiny):
    lines = list(bench.bench(None, 1))
    assert lines[0].startswith(f"CPU, torch {torch.__version__}, ")
    assert bench.NO_GPU in lines
    rows = [line.split(" | ") for line in lines if "| eager |" in line]
    assert [row[0] for row in rows] == ["| tiny B=2", "| adds B=2"]
    assert all(float(row[2]) > 0 and float(row[5]) > 0 for row in rows)
    assert not any("| fused |" in line for line in lines)


def test_a_cpu_sees_each_shape_once_with_a_small_batch():
    small = bench.small(bench.shapes())
    assert {sizes.batch for sizes in small.values()} == {2}
    assert all(name.endswith(" B=2") for name in small)
    assert len(small) == len(bench.shapes()) - 2  # two shapes stand there with two batches


def test_bytes_by_hand():
    x, keys = 2 * 4096 * 8 * 40 * 2, 2 * (77 + 16) * 8 * 40 * 2
    assert bench.bytes_moved(SIZES, 2) == (2 * x + keys, 4 * x + 2 * keys)
    added = replace(SIZES, text=0)
    keys = 2 * 16 * 8 * 40 * 2
    assert bench.bytes_moved(added, 2) == (3 * x + keys, 3 * x + 2 * keys)


def test_a_row_has_rates_and_ratios():
    forward, backward = bench.bytes_moved(TINY, 4)
    fused = bench.Cost(forward=1e-3, backward=2e-3, peak=3 * 2**20)
    eager = bench.Cost(forward=4e-3, backward=3e-3, peak=None)
    copy = forward / 1e-3
    first, second = bench._rows("tiny", TINY, {"fused": fused, "eager": eager}, copy, CPU)
    cells = [cell.strip() for cell in first.strip("|").split("|")]
    assert len(cells) == len(bench.COLUMNS)
    assert cells[:2] == ["tiny", "fused"]
    assert cells[2] == "1"
    assert cells[4] == "100%"
    assert cells[7] == f"{backward / 2e-3 / copy:.0%}"
    assert cells[8:] == ["3", "4.00", "1.50"]
    assert second.endswith("|  | 1.00 | 1.00 |")
    assert not bench._slower({"fused": fused, "eager": eager})
    assert bench._slower({"fused": replace(fused, backward=3.1e-3), "eager": eager})


def test_figures_of_a_cpu_are_not_written(tiny, tmp_path):
    with pytest.raises(ValueError, match="torch sees none; leave --into out"):
        next(bench.bench(tmp_path / "attention.md", 1))


def test_only_what_is_between_the_marks_is_replaced(tmp_path):
    file = tmp_path / "attention.md"
    file.write_text(f"before\n{bench.BEGIN}\nold\n{bench.END}\nafter\n")
    bench._check_file(file, gpu=True)
    bench._write(file, ["a", "b"])
    assert file.read_text() == f"before\n{bench.BEGIN}\na\nb\n{bench.END}\nafter\n"
    file.write_text("no marks")
    with pytest.raises(ValueError, match="once each"):
        bench._check_file(file, gpu=True)


def test_the_page_has_the_marks_and_the_columns():
    page = Path(__file__).parents[2] / "docs" / "attention.md"
    bench._check_file(page, gpu=True)
    assert bench._row(bench.COLUMNS) in page.read_text(encoding="utf-8")
