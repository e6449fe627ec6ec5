"""Two processes (gloo) make the groups and updates of one; a reward that fails on one of them ends both."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.online.runs import online_run
from tests.online.test_runs import ROOT, WEIGHTS, rows
from tests.train.runs import launch

NAMES = ("grpo", "dgpo", "lpo", "online_pairs", "dpok")
OWN = {"dpok": ("advantage={name: value, learning_rate: 1e-3}",)}
"""A learned baseline sees the steps of all processes."""
CHANGES = ("update.updates=1", "update.micro_batch=4", "optim.learning_rate=1e-3")
FIGURES = ("loss", "grad_norm", "rows", "reward_spread", "drift", "value_loss", "explained_variance")


@pytest.mark.slow
def test_two_processes_equal_one(models: Path, tmp_path: Path) -> None:
    words: list[str] = []
    for name in NAMES:
        changes = (*CHANGES, *OWN.get(name, ()))
        online_run(name, "sd3", models, tmp_path / "1" / name, *changes)
        words += ["--", "sd3", str(models), str(tmp_path / "2" / name), "--objective", name, *changes]
    launch(2, *words[1:], module="tests.online.runs")
    different = [n for n in NAMES if not near(tmp_path / "1" / n, tmp_path / "2" / n)]
    assert different == []


def near(one: Path, other: Path) -> bool:
    left, right = rows(one), rows(other)
    assert len(left) == len(right) == 2
    figures = all(
        a[k] == pytest.approx(b[k], rel=2e-3, abs=2e-5)
        for a, b in zip(left, right, strict=True)
        for k in a
        if k in FIGURES or k.startswith("reward/")
    )
    a, b = load_file(one / WEIGHTS), load_file(other / WEIGHTS)
    return figures and all(torch.allclose(a[k], b[k], rtol=1e-3, atol=1e-4) for k in a)


@pytest.mark.slow
def test_a_reward_that_fails_on_one_process_ends_both(models: Path, tmp_path: Path) -> None:
    environment = os.environ | {
        "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "",
        "ACCELERATE_USE_CPU": "true", "BROKEN_RANK": "1",
    }  # fmt: skip
    started = time.perf_counter()
    done = subprocess.run(
        [
            sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2",
            "--main_process_port", "0", "--multi_gpu", "-m", "tests.online.runs", "sd3", str(models),
            str(tmp_path / "run"), "rewards=[{scorer: 'tests.online.runs:Broken'}]",
        ],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode != 0
    text = (
        "RewardError: process 1: reward tests.online.runs:Broken failed: ConnectionError: the reward server"
    )
    assert done.stderr.count(text) >= 1, done.stderr[-3000:]
    assert time.perf_counter() - started < 200  # most of it is the start of two processes
    assert not (tmp_path / "run" / "export").exists()
