"""Studies: blocks and settings of a parent league, an option that is varied, methods of single pipelines."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from diffalign.league.config import League, main_jobs, read_league, sweep_jobs
from diffalign.league.page import write_page
from diffalign.league.play import chosen, digest, missing, result_of
from diffalign.league.results import choose, rows, save_result
from diffalign.online.config import OnlineConfig
from diffalign.train.align import load_any
from diffalign.train.config import TrainConfig
from diffalign.train.run import RunFolder
from tests.league.test_league import BASE

LEAGUE = """
common: {steps: 100, policy: {model: samples/shapes/unet}}
pipelines: {unet: {}, dit: {error_weight: eps_equivalent}}
methods:
  dpo:
    recipe: {objective: {name: dpo}, space: {name: pixel}}
    sweep: {objective.beta: [1, 2]}
    on: {dit: {recipe: {error_weight: one}, sweep: {objective.beta: [30, 40]}}}
  flow: {recipe: {objective: {name: dpo}}, pipelines: [dit]}
  spin: {recipe: {objective: {name: dpo}, losers: {name: spin, iterations: 2}}}
"""
STUDY = """
parent: PARENT
parent_runs: RUNS
title: Few pairs
intro: What few pairs are worth.
common: {batch: 8}
pipelines: {unet: {}}
methods:
  dpo: {like: dpo}
  soft: {like: dpo, recipe: {objective: {name: cdpo}}}
  fixed: {recipe: {objective: {name: sft}}, sweep: {optim.learning_rate: [0.1]}}
vary: {data.max_pairs: [50, 500]}
seeds: [0, 1]
columns: ["win rate [95 %]", steps]
draw: curve
"""


@pytest.fixture
def league(tmp_path: Path) -> League:
    (tmp_path / "league.yaml").write_text(LEAGUE)
    return read_league(tmp_path / "league.yaml")


@pytest.fixture
def study(league: League, tmp_path: Path) -> League:
    text = STUDY.replace("PARENT", str(tmp_path / "league.yaml")).replace("RUNS", str(tmp_path / "runs"))
    (tmp_path / "pairs.yaml").write_text(text)
    return read_league(tmp_path / "pairs.yaml")


def finish_the_sweep(league: League, runs: Path) -> None:
    """The larger beta wins."""
    for job in sweep_jobs(league):
        result = replace(
            BASE, job=job.name, pipeline=job.pipeline, method=job.method, setting=job.setting,
            digest=digest(job), gain=job.setting["objective.beta"],
        )  # fmt: skip
        (runs / job.name).mkdir(parents=True)
        save_result(runs / job.name, result)


def test_pipelines_have_their_own_values_and_methods(league: League) -> None:
    jobs = {j.name: j.recipe for j in sweep_jobs(league)}
    assert list(jobs) == [
        "unet/dpo/sweep-beta=1-s0", "unet/dpo/sweep-beta=2-s0", "dit/dpo/sweep-beta=30-s0",
        "dit/dpo/sweep-beta=40-s0",
    ]  # fmt: skip
    assert jobs["dit/dpo/sweep-beta=30-s0"]["error_weight"] == "one"
    assert jobs["dit/dpo/sweep-beta=30-s0"]["space"] == {"name": "pixel"}
    assert [p for p, name in choose(league, {}) if name == "flow"] == ["dit"]


def test_rounds_share_the_steps(league: League) -> None:
    (job,) = main_jobs(league, {("unet", "spin"): {}})
    assert job.recipe["steps"] == 50


def test_a_study_waits_for_the_settings_of_its_parent(league: League, study: League, tmp_path: Path) -> None:
    fixed = ("unet", "fixed")
    assert chosen(study, tmp_path / "own") == {fixed: {"optim.learning_rate": 0.1}}
    finish_the_sweep(league, tmp_path / "runs")
    found = chosen(study, tmp_path / "own")
    best = {"objective.beta": 2}
    assert found == {("unet", "dpo"): best, ("unet", "soft"): best, fixed: {"optim.learning_rate": 0.1}}


def test_every_method_runs_at_every_point_with_every_seed(
    league: League, study: League, tmp_path: Path
) -> None:
    finish_the_sweep(league, tmp_path / "runs")
    jobs = {j.name: j for j in missing(study, tmp_path / "own")}
    assert len(jobs) == 3 * 2 * 2
    job = jobs["unet/soft/main-max_pairs=500,beta=2-s1"]
    assert job.recipe == {
        "steps": 100, "batch": 8, "seed": 1, "policy": {"model": "samples/shapes/unet"},
        "objective": {"name": "cdpo", "beta": 2}, "space": {"name": "pixel"}, "data": {"max_pairs": 500},
    }  # fmt: skip
    assert isinstance(job.recipe["data"]["max_pairs"], int)


def test_the_page_of_a_study_keeps_its_order_and_draws_lines(study: League, tmp_path: Path) -> None:
    setting = {"objective.beta": 2, "data.max_pairs": 500}
    found = {
        seed: replace(BASE, job=f"{seed}", kind="main", setting=setting, seed=seed, win_rate=0.6 + 0.1 * seed)
        for seed in (0, 1)
    }
    results = {r.job: r for r in found.values()}
    write_page(study, results, tmp_path / "docs", "pairs")
    text = (tmp_path / "docs" / "pairs.md").read_text()
    assert text.startswith("# Few pairs\n\nWhat few pairs are worth.\n")
    assert "| method | max_pairs | win rate [95 %] | steps |\n" in text
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    assert lines[0] == "| `dpo` | 50 | not run yet |  |"
    assert lines[1] == "| `dpo` | 500 | 0.650 [0.600, 0.800] | 60 |"
    assert "Settings tried" not in text
    assert (tmp_path / "docs" / "pairs.png").stat().st_size > 10_000
    assert len(rows(study, results, "unet")) == 6


def test_methods_that_a_pipeline_lacks_say_so(league: League, tmp_path: Path) -> None:
    write_page(league, {}, tmp_path)
    unet, dit = (tmp_path / "league.md").read_text().split("## dit")
    assert "| `flow` | not for this pipeline |" in unet
    assert "| `flow` | not run yet |" in dit


def test_rounds_are_counted_together(tmp_path: Path, league: League) -> None:
    folders = [tmp_path / f"round-{i}" for i in (1, 2)]
    for folder, gain in zip(folders, (0.1, 0.6), strict=True):
        folder.mkdir()
        steps = [{"step": i, "timing": {"seconds": 2.0}} for i in (1, 2, 3)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in steps))
        (folder / "validation.jsonl").write_text(json.dumps({"step": 2, "mean_gain_sd": gain}) + "\n")
    (job,) = main_jobs(league, {("unet", "spin"): {}})
    compared = {"metric": "j", "mean_gain_sd": 1, "win_rate": 1, "ci_low": 1, "ci_high": 1}
    report = {
        "comparisons": [compared],
        "obedience": {"base": 1, "model": 1},
        "diversity": {"base": {"vendi": 1}, "model": {"vendi": 1}},
    }
    result = result_of(job, report, [RunFolder(root=f) for f in folders], "")  # type: ignore[arg-type]
    assert (result.steps, result.seconds) == (6, 12.0)
    assert (result.steps_to_half, result.seconds_to_half) == (5, 10.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("pipelines: [dit]", "pipelines: [mmdit]"), "methods.flow names pipeline 'mmdit'; there are unet"),
        (("on: {dit:", "on: {dot:"), "methods.dpo names pipeline 'dot'"),
        (("flow: {", "flow: {like: dpo, "), "methods.flow.like is 'dpo', and no parent"),
        (("common:", "draw: curve\ncommon:"), "needs one option under vary"),
    ],
)
def test_files_that_do_not_fit_are_refused(change: tuple[str, str], message: str, tmp_path: Path) -> None:
    (tmp_path / "league.yaml").write_text(LEAGUE.replace(*change))
    with pytest.raises(ValueError, match=message):
        read_league(tmp_path / "league.yaml")


def test_a_study_like_nothing_and_an_unknown_column_are_refused(study: League, tmp_path: Path) -> None:
    file = tmp_path / "pairs.yaml"
    file.write_text(file.read_text().replace("{like: dpo}", "{like: dop}"))
    with pytest.raises(ValueError, match=r"like names 'dop'; .* has dpo, flow, spin"):
        read_league(file)
    with pytest.raises(ValueError, match=r"columns names .gains.; there are gain in s"):
        write_page(replace(study, columns=("gains",)), {}, tmp_path)


@pytest.mark.parametrize("file", sorted(Path("training/studies").glob("*.yaml")), ids=lambda f: f.stem)
def test_every_recipe_of_the_packaged_studies_loads(file: Path, tmp_path: Path) -> None:
    study = read_league(file)
    parent = read_league(Path(study.parent))
    tried = {
        (p, name): (parent.methods[m.like] if m.like else m).settings(p)[0]
        for p, (name, m) in product(study.pipelines, study.methods.items())
    }
    jobs = list(main_jobs(study, tried))
    assert len({j.name for j in jobs}) == len(jobs)
    for job in {(j.pipeline, j.method): j for j in jobs}.values():
        config = load_any({**job.recipe, "output": "unused"})
        if isinstance(config, OnlineConfig):
            assert config.steps * config.groups.prompts * config.groups.images >= 768
            continue
        assert isinstance(config, TrainConfig)
        assert config.steps * config.batch >= 800
    write_page(study, {}, tmp_path, file.stem)
    page = (tmp_path / f"{file.stem}.md").read_text()
    assert page.count("not run yet") == len(jobs) / len(study.seeds)
