"""Validation while training: it judges what will be exported, chooses the best, and never stops a run."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from diffalign.evaluate.judge import Judge
from diffalign.policy.lora import read_lora
from diffalign.train import validate
from diffalign.train.align import align
from diffalign.train.checkpoint import Checkpoint, load_checkpoint
from diffalign.train.run import RunFolder
from tests.train.runs import launch, recipe, records

BEST = [
    "keep=best", "checkpoint_every=4", "evaluate.steps=1",
    "validate={every: 3, prompts: 2, seeds: 2, judge: 'tests.train.runs:Brightness'}",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def win_rates(monkeypatch: pytest.MonkeyPatch, rates: list[float]) -> None:
    """Let validations find these win rates, one after the other."""
    rest, original = iter(rates), validate.compare

    def compare(*arguments: Any, **options: Any) -> Any:
        result = original(*arguments, **options)
        return replace(result, win_rate=replace(result.win_rate, value=next(rest)))

    monkeypatch.setattr(validate, "compare", compare)


def saved(run: Path, step: int) -> Checkpoint:
    return load_checkpoint(run / "checkpoints" / f"step-{step:06d}")


@pytest.mark.slow
def test_the_best_is_kept_exported_and_known_after_a_resume(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    win_rates(monkeypatch, [0.5, 0.9, 0.6, 0.7])
    content = recipe("sd", folder, tmp_path / "run")
    run = align(content, *BEST, "keep_checkpoints=1", "checkpoint_every=1", records=records())
    assert {p.name for p in (run.dir / "checkpoints").iterdir()} == {"step-000006", "step-000010"}
    assert saved(run.dir, 6).meta["best"]["step"] == 6, "a step's checkpoint knows that it is the best"
    exported = read_lora(str(run.dir / "export")).state
    average = saved(run.dir, 6).part("ema")
    assert all(torch.equal(exported[k.replace(".default.", ".")], v) for k, v in average.items())
    resumed = align({}, resume=run.dir / "checkpoints" / "step-000006", records=records())
    assert json.dumps(saved(resumed.dir, 10).meta["best"]) == json.dumps(saved(run.dir, 6).meta["best"])


@pytest.mark.slow
def test_pictures_of_validation_are_those_of_the_average(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def generate(policy: Any, *arguments: Any, **options: Any) -> torch.Tensor:
        seen.append(all(torch.equal(p.detach(), trainers[0].ema.average[k]) for k, p in trained(policy)))
        return original(policy, *arguments, **options)

    def note(self: validate.Validator, trainer: Any) -> None:
        trainers.append(trainer)
        judge(self, trainer)

    trainers: list[Any] = []
    original, judge = validate.generate, validate.Validator.validate
    monkeypatch.setattr(validate, "generate", generate)
    monkeypatch.setattr(validate.Validator, "validate", note)
    options = ["steps=3", "evaluate.steps=1", "validate={every: 3, prompts: 1}"]
    align(recipe("sd", folder, tmp_path / "run"), *options, records=records())
    assert seen == [True]


def trained(policy: Any) -> Any:
    return policy.trainable().items()


@pytest.mark.slow
def test_a_judge_to_whom_all_seeds_are_alike_warns_only(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Judge, "score", lambda judge, pictures, prompts: torch.ones(2, 2).numpy())
    with caplog.at_level(logging.WARNING):
        align(recipe("sd", folder, tmp_path / "run"), *BEST, "steps=4", records=records())
    assert "step 3: validate.judge tests.train.runs:Brightness cannot judge" in caplog.text


def test_one_seed_is_refused_where_a_judge_is_named() -> None:
    from diffalign.train.align import load_recipe

    common = ["evaluate.judges=[shapes-large]"]
    with pytest.raises(ValueError, match=r"validate\.seeds is 1.*at least 2"):
        load_recipe(
            "training/recipes/shapes-unet-dpo.yaml",
            [*common, "validate={every: 5, seeds: 1, judge: shapes-large}"],
        )
    with pytest.raises(ValueError, match=r"evaluate\.seeds is 1.*at least 2"):
        load_recipe("training/recipes/shapes-unet-dpo.yaml", [*common, "evaluate.seeds=1"])


@pytest.mark.slow
def test_two_processes_keep_the_best(folder: Path, tmp_path: Path) -> None:
    launch(2, "sd", str(folder), str(tmp_path / "run"), "steps=4", *BEST)
    run = RunFolder(root=tmp_path / "run")
    assert {p.name for p in run.checkpoints.iterdir()} == {"step-000003", "step-000004"}
