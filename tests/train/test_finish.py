"""The end of a run: which prompts select and which report, the evaluation's files, and all of it again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffalign.bench import bench
from diffalign.config import ConfigError
from diffalign.evaluate.generate import Sampling, generate
from diffalign.evaluate.prompts import part_of
from diffalign.evaluate.report import load_report
from diffalign.train import finish
from diffalign.train.again import evaluate_again, gallery_again, open_run
from diffalign.train.align import align, load_recipe
from diffalign.train.blocks import EvaluateConfig, WorldConfig
from diffalign.train.config import TrainConfig
from diffalign.train.finish import Run, evaluation_prompts, paired_evaluation
from diffalign.train.progress import Screen
from diffalign.world.grammar import is_heldout, parse
from diffalign.world.raters import TASTES
from diffalign.world.votes import training_prompts, world_prompts
from tests.train.runs import recipe, records

QUIET = Screen(False, 1, 1, 1)


def world_recipe(folder: Path, output: Path) -> dict[str, Any]:
    content = recipe("sd", folder, output)
    content["data"] |= {"path": None, "world": {"images": 8, "per_prompt": 2, "careless": 1.0}}
    content["evaluate"] = {"prompts": 2, "seeds": 2, "steps": 2, "judges": ["tests.tiny:Brightness"]}
    # Votes are random, as an untrained model draws nothing to vote on; two such steps change pictures.
    return content | {"steps": 2, "batch": 2, "ema": 0.0, "optim": {"learning_rate": 0.1}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("finish")
    return align(world_recipe(folder, folder / "run"))


def test_the_evaluation_writes_report_gallery_and_card(run: Run) -> None:
    report = load_report(run.dir / "report.json")
    assert report == run.report
    assert (report["prompts"], report["seeds_per_prompt"], report["base"]) == (2, 2, "base")
    page = (run.dir / "gallery.html").read_text()
    config, _ = open_run(run.dir)
    prompts = evaluation_prompts(config, "report")[:2]
    assert all(p in page for p in prompts)
    assert f"{report['comparisons'][0]['win_rate']:.3f}" in (run.dir / "export" / "README.md").read_text()


def test_base_and_model_are_paired_by_prompt_and_seed(run: Run) -> None:
    config, policy = open_run(run.dir)
    found = paired_evaluation(config, policy, QUIET)
    prompts = evaluation_prompts(config, "report")[:2]
    assert list(found.prompts) == prompts
    assert all(is_heldout(parse(p)) for p in prompts)
    sampling = Sampling(steps=2, guidance=config.evaluate.guidance)
    with policy.base():
        torch.testing.assert_close(found.base, generate(policy, prompts, [0, 1], sampling), rtol=0, atol=0)
    torch.testing.assert_close(found.model, generate(policy, prompts, [0, 1], sampling), rtol=0, atol=0)
    assert not torch.equal(found.base, found.model)
    base, model = found.scores["tests.tiny:Brightness"]
    np.testing.assert_allclose(base, found.base.float().mean((2, 3, 4)) / 255, rtol=1e-4)
    np.testing.assert_allclose(model, found.model.float().mean((2, 3, 4)) / 255, rtol=1e-4)


@pytest.mark.slow
def test_a_run_is_evaluated_and_shown_again(run: Run, tmp_path: Path) -> None:
    before = (run.dir / "report.json").read_bytes()
    path = evaluate_again(run.dir, prompts=3, seeds=0)
    report = load_report(path)
    assert (path.name, report["prompts"], report["seeds_per_prompt"]) == ("report-3x2.json", 3, 2)
    assert (run.dir / "report.json").read_bytes() == before
    page = gallery_again(run.dir, tmp_path / "look.html", 1)
    assert page.read_text().count("data:image/png") == 4  # one prompt, two seeds, two models
    with pytest.raises(FileExistsError):
        gallery_again(run.dir, page, 1)


def test_fewer_prompts_than_asked_for_are_said_and_named(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    few = evaluation_prompts(open_run(run.dir)[0], "report")[:4]
    monkeypatch.setattr(finish, "evaluation_prompts", lambda config, part: few)
    assert evaluate_again(run.dir, prompts=5, seeds=0).name == "report-4x2.json"
    assert "4 prompts to evaluate on, not the 5 asked for" in caplog.text


@pytest.mark.slow
def test_prompts_that_are_trained_on_are_said_and_select_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = records()
    spoken = [r.prompt.upper() + " " for r in given]
    (tmp_path / "p.txt").write_text("\n".join([*spoken, "another", "and one more", "some other"]))
    content = recipe("sd", tmp_path, tmp_path / "run") | {"steps": 1, "validate": {"every": 1}}
    content["evaluate"] = {"prompts": 2, "seeds": 2, "steps": 1, "judges": ["tests.tiny:Brightness"]}
    content["evaluate"] |= {"prompt_file": str(tmp_path / "p.txt")}
    options = load_recipe(content)
    captions = {r.prompt for r in given}
    all_of_them = evaluation_prompts(options, "select")
    kept = evaluation_prompts(options, "select", captions)
    assert 0 < len(kept) < len(all_of_them)
    assert not {p.lower().strip() for p in kept} & captions
    assert evaluation_prompts(options, "report", captions) == evaluation_prompts(options, "report")
    run = align(content, records=given)
    assert Image.open(run.dir / "samples" / "step-000001.png").height == 64 * len(kept)
    assert "2 of the 2 prompts that will be reported are training captions too" in caplog.text
    (tmp_path / "p.txt").write_text("\n".join(spoken))
    with pytest.raises(ConfigError, match=r"all prompts to select.*validate.every=0"):
        align(content, records=given)


@pytest.mark.slow
def test_bench_measures_phases(tmp_path: Path) -> None:
    lines = list(bench(write(world_recipe(tmp_path, tmp_path / "x"), tmp_path / "r.yaml"), [], 2, True))
    assert [line.split("  ")[0] for line in lines[:4]] == ["device", "step", "share", "peak memory"]
    assert "times ours" in lines[4]
    assert not (tmp_path / "x").exists()


def write(content: dict[str, Any], path: Path) -> str:
    import yaml

    path.write_text(yaml.safe_dump(content))
    return str(path)


def config(
    folder: Path, world: WorldConfig | None = None, evaluate: EvaluateConfig | None = None
) -> TrainConfig:
    loaded = load_recipe(world_recipe(folder, folder / "run"))
    data = replace(loaded.data, world=world or WorldConfig())
    return replace(loaded, data=data, evaluate=evaluate or loaded.evaluate)


def test_prompts_of_a_file_are_split(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("\n".join(f"prompt {i}" for i in range(40)))
    options = config(tmp_path, evaluate=EvaluateConfig(prompt_file=str(tmp_path / "p.txt")))
    select, report = evaluation_prompts(options, "select"), evaluation_prompts(options, "report")
    assert sorted(select + report) == sorted(f"prompt {i}" for i in range(40))
    assert {part_of(p) for p in select} == {"select"}
    assert {part_of(p) for p in report} == {"report"}


@pytest.mark.parametrize("taste", TASTES)
def test_prompts_of_the_world_report_what_is_held_out_and_select_what_was_not_voted_on(
    taste: str, tmp_path: Path
) -> None:
    options = config(tmp_path, WorldConfig(taste=taste))
    select, report = evaluation_prompts(options, "select"), evaluation_prompts(options, "report")
    assert all(is_heldout(parse(p)) for p in report)
    assert not any(is_heldout(parse(p)) for p in select)
    assert len(report) >= 100
    voted = [str(p) for p in training_prompts(WorldConfig(taste=taste))[0]]
    assert not set(voted) & set(select)
    assert len(select) >= 32
    # 150 were voted on in all published figures; only where there are too few may it be less
    assert voted == [str(p) for p in world_prompts(taste, 80 if taste in ("warm", "cool") else 150, "train")]
