"""Two processes (gloo) train every objective as one does, but for those that mix the units of a batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diffalign.train.run import RunFolder
from tests.invariant.test_objectives import COUPLED
from tests.train.runs import launch
from tests.train.test_compositions import TRAINED
from tests.train.test_trainer import weights

OWN_BATCH = frozenset({"aot", "rpo", "sdpo"})
"""Of the coupled ones: order, contrast or cap are within a process's own part of the batch, by nature."""


@pytest.mark.slow
def test_two_processes_equal_one_for_every_objective(tmp_path: Path) -> None:
    for processes in (1, 2):
        arguments = (str(tmp_path / "models"), str(tmp_path / str(processes)))
        launch(processes, *arguments, module="tests.train.every_objective")
    different = {name for name in TRAINED if not equal(tmp_path / "1" / name, tmp_path / "2" / name)}
    assert different <= OWN_BATCH


@pytest.mark.slow
def test_two_processes_train_in_rounds_on_the_same_losers(tmp_path: Path) -> None:
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        options = ("losers={iterations: 2, sampling_steps: 1}", "steps=2", "ema=0", "checkpoint_every=0")
        launch(processes, "sd", str(tmp_path / "models"), str(folder), *options, f"data.cache={folder}-cache")
        lines = (folder / "round-2" / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == 2
    for number in (1, 2):
        runs = [tmp_path / str(processes) / f"round-{number}" for processes in (1, 2)]
        one, two = (weights(run) for run in runs)
        losses = [[row["loss"] for row in RunFolder(root=run).rows()] for run in runs]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)
        assert all(torch.allclose(one[k], two[k], rtol=1e-3, atol=1e-4) for k in one)


def test_those_that_differ_say_that_they_are_coupled() -> None:
    assert OWN_BATCH <= COUPLED


def equal(one: Path, other: Path) -> bool:
    """Whether two runs have the same losses, gradient norms and weights, to float64 and its rounding."""
    a, b = (RunFolder(root=run).rows() for run in (one, other))
    assert len(a) == len(b) == 2
    near = [
        row[key] == pytest.approx(twin[key], rel=1e-8, abs=1e-12)
        for row, twin in zip(a, b, strict=True)
        for key in ("loss", "grad_norm")
    ]
    left, right = weights(one), weights(other)
    return all(near) and all(torch.allclose(left[k], right[k], rtol=1e-5, atol=1e-9) for k in left)
