"""Resuming: 10 steps equal 4 steps, a kill -9, and the rest; checkpoints survive everything."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diffalign.train import checkpoint as checkpoints
from diffalign.train.checkpoint import Checkpoint, CheckpointError, load_checkpoint, newest, save_checkpoint
from diffalign.train.random_state import put_random_state
from tests.tiny import tiny_pipeline
from tests.train.runs import tiny_run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def process(*arguments: str) -> int:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.train.runs", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr[-3000:]
    return done.returncode


def rows(run: Path) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in json.loads(line).items() if k != "timing"}
        for line in (run / "metrics.jsonl").read_text().splitlines()
    ]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["step", "rename"])
def test_killed_and_resumed_is_bit_equal(where: str, folder: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    common = ["sd", str(folder)]
    assert process(*common, str(whole)) == 0
    assert (
        process(*common, str(broken), "--kill", f"{6 if where == 'step' else 8}:{where}") == -signal.SIGKILL
    )
    assert not (broken / "export").exists()
    assert [p.name for p in (broken / "checkpoints").glob("step-*")] == ["step-000004"]
    assert process(*common, str(broken), "--resume", str(broken)) == 0
    for part in ("export/pytorch_lora_weights.safetensors", "checkpoints/step-000010/state.safetensors"):
        one, other = load_file(whole / part), load_file(broken / part)
        assert set(one) == set(other)
        assert all(torch.equal(one[k], other[k]) for k in one), part
    assert rows(whole) == rows(broken)


def test_nothing_is_overwritten(folder: Path, tmp_path: Path) -> None:
    first = tiny_run("sd", folder, tmp_path / "run", "steps=1")
    second = tiny_run("sd", folder, tmp_path / "run", "steps=1")
    assert (first.dir, second.dir) == (tmp_path / "run", tmp_path / "run-2")


def some(step: int = 3) -> Checkpoint:
    return Checkpoint(
        step=step,
        tensors={"policy/a": torch.arange(4.0), "optim/a/exp_avg": torch.ones(4)},
        meta={"optim": {}},
    )


def test_round_trip_and_newest(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, some(3))
    path = save_checkpoint(tmp_path, some(12))
    assert newest(tmp_path) == path
    loaded = load_checkpoint(path)
    assert loaded.step == 12
    assert torch.equal(loaded.part("policy")["a"], torch.arange(4.0))
    checkpoints.prune(tmp_path, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000012"]


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, some(3))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(CheckpointError, match=r"No space left.*earlier checkpoints are whole.*free space"):
        save_checkpoint(tmp_path, some(6))
    assert [p.name for p in tmp_path.iterdir()] == ["step-000003"]
    assert load_checkpoint(tmp_path / "step-000003").step == 3


@pytest.mark.slow
def test_half_written_and_foreign_checkpoints_are_refused(folder: Path, tmp_path: Path) -> None:
    run = tiny_run("sd", folder, tmp_path / "run", "steps=2")
    whole = newest(run.dir / "checkpoints")
    assert whole is not None
    cut = tmp_path / "cut" / "checkpoints" / whole.name
    shutil.copytree(whole, cut)
    state = cut / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        load_checkpoint(cut)
    with pytest.raises(CheckpointError, match="belongs to another model or adapter"):
        tiny_run("sd", folder, tmp_path / "x", "policy.adapter.rank=3", "steps=4", resume=run.dir)
    empty = tmp_path / "empty"
    (empty / "checkpoints").mkdir(parents=True)
    shutil.copy(run.dir / "config.yaml", empty / "config.yaml")
    with pytest.raises(CheckpointError, match="no whole checkpoint to resume"):
        tiny_run("sd", folder, tmp_path / "x", resume=empty)
    with pytest.raises(FileNotFoundError, match="no run folder"):
        tiny_run("sd", folder, tmp_path / "x", resume=tmp_path / "nowhere")


@pytest.mark.slow
def test_a_checkpoint_of_another_run_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    run = tiny_run("sd", folder, tmp_path / "run", "steps=2")
    before = (run.dir / "config.yaml").read_text()
    other = tmp_path / "other"
    pipeline = tiny_pipeline("sd")
    pipeline.unet.conv_in.weight.data += 0.1
    pipeline.save_pretrained(other)
    for override, message in [
        ("objective.beta=1000", r"objective\.beta is 500\.0 there and 1000\.0 here"),
        ("policy.adapter.alpha=8", r"policy\.adapter\.alpha is 4\.0 there and 8\.0 here"),
        ("optim.name=adafactor", r"optim\.name is 'adamw' there"),
        ("precision=fp64", "precision is"),
        ("ema=0", "it has averaged weights, and ema is 0.0 here"),
        (f"policy.model={other}", "other base weights"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            tiny_run("sd", folder, tmp_path / "x", override, "steps=3", resume=run.dir)
    assert (run.dir / "config.yaml").read_text() == before


@pytest.mark.slow
def test_the_recipe_beside_a_resumed_run_is_the_one_that_ran(folder: Path, tmp_path: Path) -> None:
    run = tiny_run("sd", folder, tmp_path / "run", "steps=2")
    tiny_run("sd", folder, tmp_path / "x", "steps=3", resume=run.dir)
    assert "\nsteps: 3\n" in (run.dir / "config.yaml").read_text()
    assert "\nsteps: 2\n" in (run.dir / "config-until-step-000002.yaml").read_text()


@pytest.mark.slow
def test_going_back_sets_later_checkpoints_aside(folder: Path, tmp_path: Path) -> None:
    run = tiny_run("sd", folder, tmp_path / "run", "steps=4", "checkpoint_every=1", "keep_checkpoints=9")
    start = run.dir / "checkpoints" / "step-000002"
    tiny_run("sd", folder, tmp_path / "x", "steps=3", resume=start)
    assert newest(run.dir / "checkpoints") == run.dir / "checkpoints" / "step-000003"
    aside = run.dir / "checkpoints" / "aside-1"
    assert {p.name for p in aside.iterdir()} == {"step-000003", "step-000004"}


def test_a_damaged_checkpoint_of_full_size_is_refused(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, some())
    state = path / "state.safetensors"
    state.write_bytes(b"\xff" * state.stat().st_size)
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        load_checkpoint(path)


@pytest.mark.slow
def test_monitor_and_all_random_states_are_in_a_checkpoint(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tiny_run("sd", folder, tmp_path / "run", "steps=2")
    saved = load_checkpoint(run.dir / "checkpoints" / "step-000002")
    assert saved.meta["monitor"]["gradients"] == [row["grad_norm"] for row in rows(run.dir)]
    assert saved.meta["recipe"]["policy"]["adapter"]["rank"] == 2
    put_random_state(saved.part("rng/0"), saved.meta["random"][0], torch.device("cpu"))
    drawn = (random.random(), float(np.random.rand()), float(torch.rand(())))  # noqa: NPY002
    random.seed(7), np.random.seed(7), torch.manual_seed(7)  # noqa: NPY002
    put_random_state(saved.part("rng/0"), saved.meta["random"][0], torch.device("cpu"))
    assert drawn == (random.random(), float(np.random.rand()), float(torch.rand(())))  # noqa: NPY002
    meta = run.dir / "checkpoints" / "step-000002" / "state.json"
    meta.write_text(meta.read_text().replace('"processes": 1', '"processes": 2'))
    tiny_run("sd", folder, tmp_path / "x", "steps=3", resume=run.dir)
    assert "the checkpoint is of 2 processes, this run has 1" in caplog.text
