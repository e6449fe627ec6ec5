"""The watch over a run: what it warns of, what stops it, and that figures come one step late."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from diffalign.diffusion import spaces
from diffalign.train import align as aligning
from diffalign.train.checkpoint import load_checkpoint
from diffalign.train.config import TrainConfig
from diffalign.train.monitor import DivergedError, LateReader, Monitor
from diffalign.train.run import RunFolder
from tests.train.runs import tiny_run


def row(**changes: float) -> dict[str, float]:
    usual = {
        "loss": 0.69,
        "grad_norm": 1.0,
        "accuracy": 0.6,
        "win_gap": 0.0,
        "lose_gap": 0.0,
        "error_win": 0.1,
    }
    return usual | changes


def test_both_errors_rising_warns_once() -> None:
    monitor = Monitor(patience=5)
    for step in range(20):
        monitor.watch(step, row(win_gap=0.02, lose_gap=0.03), [])
    assert len(monitor.warnings) == 1
    assert "both errors rise" in monitor.warnings[0]
    healthy = Monitor(patience=5)
    for step in range(20):
        healthy.watch(step, row(win_gap=-0.02, lose_gap=0.03), [])
    assert not healthy.warnings


def test_accuracy_at_one_half_and_spikes_warn() -> None:
    monitor = Monitor(stuck=10)
    for step in range(30):
        monitor.watch(step, row(accuracy=0.5), [])
    monitor.watch(30, row(grad_norm=50.0), [])
    assert ["accuracy" in w for w in monitor.warnings] == [True, False]
    assert "50 is 50 times the usual" in monitor.warnings[1]


@pytest.mark.parametrize("bad", [{"loss": math.nan}, {"grad_norm": math.inf}])
def test_what_is_not_finite_stops(bad: dict[str, float]) -> None:
    with pytest.raises(DivergedError, match=r"step 7: .*records \[3, 4\].*learning_rate"):
        Monitor().watch(7, row(**bad), [3, 4])


def test_figures_come_one_step_late() -> None:
    reader = LateReader()
    assert reader.push(1, {"loss": torch.tensor(1.0)}, [0]) is None
    assert reader.push(2, {"loss": torch.tensor(2.0)}, [1]) == (1, {"loss": 1.0}, [0])
    assert reader.flush() == (2, {"loss": 2.0}, [1])
    assert reader.flush() is None


@pytest.mark.slow
def test_a_diverging_run_keeps_its_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = spaces.native_error

    def poisoned(pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        poisoned.calls += 1  # type: ignore[attr-defined]
        return original(pred, target) * (math.nan if poisoned.calls > 10 else 1.0)  # type: ignore[attr-defined]

    poisoned.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(spaces, "native_error", poisoned)
    with pytest.raises(DivergedError, match="step 6"):
        tiny_run("sd", tmp_path, tmp_path / "run", "checkpoint_every=1")
    run = RunFolder(root=tmp_path / "run")
    assert sorted(p.name for p in run.checkpoints.iterdir())[-1] == "step-000005"
    assert run.rows()[-1]["loss"] is None, "the bad step is on record, as null"


def test_figures_travel_in_their_own_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: torch.Tensor) -> torch.Tensor:
        raise TypeError("MPS has no float64")

    monkeypatch.setattr(torch.Tensor, "double", refused)
    reader = LateReader()
    reader.push(1, {"loss": torch.tensor(0.1), "share": torch.tensor(1, dtype=torch.int64)}, [0])
    assert reader.flush() == (1, {"loss": pytest.approx(0.1), "share": 1.0}, [0])


def test_skipped_steps_are_pardoned_for_a_while() -> None:
    monitor, overflow = Monitor(patience=5), row(grad_norm=math.inf, skipped=1.0)
    for step in range(4):
        monitor.watch(step, overflow, [])
    monitor.watch(4, row(skipped=0.0), [])
    resumed = Monitor(patience=5)
    for step in range(5, 9):
        monitor.watch(step, overflow, [])
    resumed.load_state_dict(monitor.state_dict())
    with pytest.raises(DivergedError, match="step 9"):
        resumed.watch(9, overflow, [])


@pytest.mark.slow
def test_an_overflow_of_the_loss_scaler_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = aligning.make_accelerator

    def with_scaler(config: TrainConfig) -> Any:
        accelerator = make(config)
        accelerator.scaler = scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)  # overflows at once

        def unscale(*_: Any) -> None:
            scaler.unscale_(accelerator._optimizers[0].optimizer)

        monkeypatch.setattr(accelerator, "unscale_gradients", unscale)
        monkeypatch.setattr(accelerator, "clip_grad_norm_", clip(unscale))
        return accelerator

    def clip(unscale: Any) -> Any:
        def run(parameters: Any, limit: float) -> Any:
            unscale()
            return torch.nn.utils.clip_grad_norm_(parameters, limit)

        return run

    monkeypatch.setattr(aligning, "make_accelerator", with_scaler)
    run = tiny_run("sd", tmp_path, tmp_path / "run", "steps=12", "objective.beta=5000")
    lines = RunFolder(root=run.dir).rows()
    skips = [line["skipped"] for line in lines]
    assert 1.0 in skips
    assert 0.0 in skips
    assert all((line["grad_norm"] is None) == bool(line["skipped"]) for line in lines)
    saved = load_checkpoint(run.dir / "checkpoints" / "step-000012")
    assert saved.meta["ema_steps"] == skips.count(0.0)
    assert saved.meta["scaler"]["scale"] == 2.0 ** (127 - skips.count(1.0))


def test_batches_of_one_kind_of_label_are_named_but_not_all_of_them() -> None:
    monitor = Monitor()
    monitor.watch(1, row(likes=0.5, dislikes=0.5, one_sided=0.0), [])
    assert monitor.warnings == []
    for step in range(2, 14):
        monitor.watch(step, row(likes=0.0, dislikes=1.0, one_sided=1.0), [])
    assert [w.partition(":")[0] for w in monitor.warnings] == ["step 2", "step 11"]
    assert "no liked image (the 10. time)" in monitor.warnings[1]
    resumed = Monitor()
    resumed.load_state_dict(monitor.state_dict())
    assert resumed.one_sided == 12
