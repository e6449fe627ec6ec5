"""Whole online runs: every objective on UNet and DiT, killed and resumed, stopped."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from diffalign.objectives.steps import online_names
from diffalign.online import run as online
from diffalign.online.rewards import RewardError
from diffalign.policy import Policy, load_policy
from tests.online.runs import BRIGHT, Brightness, kind_of, online_run
from tests.tiny import tiny_folder

ROOT = Path(__file__).parents[2]
WEIGHTS = "export/pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def fresh(models: Path) -> Callable[[str], Policy]:
    found: dict[str, Policy] = {}

    def get(family: str) -> Policy:
        if family not in found:
            found[family] = load_policy(tiny_folder(family, models), {"rank": 2, "alpha": 4})
        return deepcopy(found[family])

    return get


def rows(run: Path) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in json.loads(line).items() if k != "timing"}
        for line in (run / "metrics.jsonl").read_text().splitlines()
    ]


def same(one: Path, other: Path) -> None:
    """Bit-equal weights, states and metrics."""
    for part in (WEIGHTS, "checkpoints/step-000003/state.safetensors"):
        left, right = load_file(one / part), load_file(other / part)
        assert set(left) == set(right)
        assert [k for k in left if not torch.equal(left[k], right[k])] == [], part
    assert rows(one) == rows(other)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd", "sd3"])
@pytest.mark.parametrize("name", online_names())
def test_every_objective_learns(
    name: str, family: str, models: Path, fresh: Callable[[str], Policy], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    policy = fresh(family)
    before = {k: p.detach().clone() for k, p in policy.trainable().items()}
    monkeypatch.setattr(online, "make_policy", lambda *_: policy)
    changes = () if name == "dense_reward_pl" else ("update.micro_batch=6",)
    run = online_run(name, family, models, tmp_path / "run", "checkpoint_every=0", *changes)
    found = rows(run.dir)
    assert [row["step"] for row in found] == [1, 2]
    for row in found:
        assert all(math.isfinite(row[k]) for k in ("loss", "grad_norm", "drift", "rows", "diversity"))
        assert row["rows"] > 0
        assert min(row["grad_norm"], row["drift"]) > 0
        assert kind_of(name) != "steps" or name in ("lpo", "spo") or row["groups"] == 2
    moved = [float((p.detach() - before[k]).abs().max()) for k, p in policy.trainable().items()]
    assert max(moved) > 0
    if name == "online_pairs":  # a pair's second draw is in the noisier half
        assert any(found[0][f"win_gap_t{i}"] is not None for i in (2, 3, 4))
    saved = load_file(run.dir / WEIGHTS)
    assert all(v.isfinite().all() for v in saved.values())
    assert any(float(v.abs().max()) > 0 for k, v in saved.items() if "lora_B" in k or "lora.up" in k)
    assert (run.dir / "config.yaml").exists()
    assert (run.dir / "checkpoints" / "step-000002").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grpo", "nft"])
def test_sdxl_is_told_the_sizes(name: str, models: Path, tmp_path: Path) -> None:
    changes = ("steps=1", "groups.images=2", "rollout.transition.name=ddim")
    (row,) = rows(online_run(name, "sdxl", models, tmp_path / "run", *changes).dir)
    assert math.isfinite(row["loss"])
    assert row["grad_norm"] > 0


# ---------------------------------------------------------------------- kills


def killed(*arguments: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.online.runs", *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]


THREE = ("steps=3", "groups.batch=4", "checkpoint_every=1", "weights.old=crd_old", "ema=0.5")


@pytest.mark.slow
@pytest.mark.parametrize("where", ["rollout:14", "reward:4"])
def test_killed_and_resumed_is_bit_equal(where: str, models: Path, tmp_path: Path) -> None:
    """Killed in the middle of the second of three iterations, which is made again and counted once."""
    torch.set_num_threads(1)
    name, changes = "ddpo", (*THREE, "advantage={name: ddpo, size: 8, min_count: 4}")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    online_run(name, "sd", models, whole, *changes)
    killed("sd", str(models), str(broken), "--objective", name, "--kill", where, *changes)
    assert [r["step"] for r in rows(broken)] in ([], [1])
    assert [p.name for p in (broken / "checkpoints").glob("step-*")] == ["step-000001"]
    begun = broken / "rewards" / "iteration-000001-0.jsonl"
    scored = len(begun.read_text().splitlines()) if begun.exists() else 0
    assert scored == 4 if where == "reward:4" else scored <= 4
    online_run(name, "sd", models, tmp_path / "unused", resume=broken)
    same(whole, broken)
    assert [r["step"] for r in rows(broken)] == [1, 2, 3]
    for i in range(3):
        lines = (broken / "rewards" / f"iteration-{i:06d}-0.jsonl").read_text().splitlines()
        keys = [json.loads(line)["key"] for line in lines]
        assert len(keys) == len(set(keys)) == 8  # no picture was scored twice


class Patchy(Brightness):
    """Fails at one call, counted over all runs."""

    calls = 0

    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        Patchy.calls += 1
        if Patchy.calls == 4:
            raise TimeoutError("busy")
        return super().score_tensor(x01, prompts)


@pytest.mark.slow
def test_a_run_goes_on_after_a_reward_failed(models: Path, tmp_path: Path) -> None:
    name, changes = "nft", (*THREE, "rewards=[{scorer: 'tests.online.test_runs:Patchy'}]")
    Patchy.calls = 100
    online_run(name, "sd3", models, tmp_path / "whole", *changes)
    Patchy.calls = 0
    with pytest.raises(
        RewardError, match=r"reward tests\.online\.test_runs:Patchy failed: TimeoutError: busy"
    ):
        online_run(name, "sd3", models, tmp_path / "broken", *changes)
    assert not (tmp_path / "broken" / "export").exists()
    online_run(name, "sd3", models, tmp_path / "unused", resume=tmp_path / "broken")
    assert Patchy.calls == 7  # six batches, one of them twice
    same(tmp_path / "whole", tmp_path / "broken")


# ---------------------------------------------------------------------- other ends


@pytest.mark.slow
def test_reward_hacking_ends_a_run_that_exports(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffalign.online.watch import Watch

    class Falling(Watch):
        def validation(self, step: int, win_rate: float) -> bool:
            self.rewards = [float(step)]
            return super().validation(step, 0.9 - 0.2 * step)

    from diffalign.online import trainer

    monkeypatch.setattr(trainer, "Watch", Falling)
    run = online_run(
        "nft", "sd3", models, tmp_path / "run", "steps=9", "rollout.steps=2", "evaluate.steps=2",
        "checkpoint_every=0", "stop={patience: 1}",
        f"validate={{every: 1, prompts: 2, seeds: 2, judge: '{BRIGHT}'}}",
    )  # fmt: skip
    assert [r["step"] for r in rows(run.dir)] == [1, 2]
    assert (run.dir / WEIGHTS).exists()
    assert (run.dir / "checkpoints" / "step-000002").exists()


@pytest.mark.slow
@pytest.mark.parametrize("compare", ["previous", "behaviour"])
def test_all_weights_and_other_references(compare: str, models: Path, tmp_path: Path) -> None:
    changes = ("policy.adapter=null", "optim.learning_rate=1e-4", "groups.reference_share=0.5")
    run = online_run("online_pairs", "sd", models, tmp_path / "run", *changes, f"compare_with={compare}")
    found = rows(run.dir)
    assert all(math.isfinite(r["loss"]) for r in found)
    # at the first update the policy still is who made the pictures
    assert found[0]["drift"] > 0
    assert (run.dir / "export" / "unet").is_dir()


@pytest.mark.slow
def test_pictures_that_are_not_numbers_teach_nothing(models: Path, tmp_path: Path) -> None:
    """A prompt whose latents broke is dropped and does not poison the gradient."""
    run = online_run(
        "nft", "sd3", models, tmp_path / "run", "steps=1", f"rewards=[{{scorer: '{__name__}:Broken'}}]"
    )
    (row,) = rows(run.dir)
    assert row["dropped"] == 0.5
    assert math.isfinite(row["loss"])


class Broken(Brightness):
    """Finds one picture that is NaN, as a broken VAE would make it."""

    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        score = super().score_tensor(x01, prompts)
        score[0] = float("nan")
        return score
