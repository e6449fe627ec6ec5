"""The yardstick of the benchmark runs on every family and on pictures of any size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diffalign import bench
from diffalign.data.records import BytesImage, Record
from diffalign.train.align import load_recipe
from tests.train.runs import recipe, records


def odd_sizes() -> list[Record]:
    """Pairs whose first picture is larger than the second."""
    large = BytesImage.from_array(np.full((80, 96, 3), 128, dtype=np.uint8))
    return [replace(r, images=(large, r.images[1])) for r in records()]


@pytest.mark.parametrize("family", ["sdxl", "sd"])
@pytest.mark.slow
def test_the_yardstick_runs(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "read_records", lambda *_: odd_sizes())
    config = load_recipe(recipe(family, tmp_path, tmp_path / "run"), ["batch=2"])
    monkeypatch.setattr(bench, "load_recipe", lambda *_: config)
    lines = list(bench.bench("tiny", [], 2, yardstick=True))
    assert lines[-1].startswith("usual script")
