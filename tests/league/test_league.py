"""The league: which runs there are, what is chosen, how rows rank, and that nothing is run twice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diffalign.config import ConfigError
from diffalign.league import play as playing
from diffalign.league.config import Job, League, main_jobs, read_league, sweep_jobs
from diffalign.league.page import COLUMNS, write_page
from diffalign.league.play import digest, missing, play
from diffalign.league.results import Result, Row, choose, load_results, restore, rows, save_result
from diffalign.train.align import load_recipe

FILE = """
common: {steps: 100, optim: {schedule: cosine, learning_rate: 0.1}, policy: {model: samples/shapes/unet}}
pipelines:
  unet: {}
  dit: {error_weight: eps_equivalent}
methods:
  base: {recipe: {objective: {name: sft}, optim: {learning_rate: 0.0}}}
  dpo:
    recipe: {objective: {name: dpo}}
    sweep: {objective.beta: [1, 2], optim.learning_rate: [0.3, 0.4]}
    known: true
seeds: [0, 1]
"""
BASE = Result(
    job="", kind="sweep", pipeline="unet", method="dpo", setting={}, seed=0, digest="", tree="abc", judge="j",
    gain=0.5, win_rate=0.7, ci_low=0.6, ci_high=0.8, obedience_base=0.9, obedience=0.9, diversity_base=1.5,
    diversity=1.4, steps=60, seconds=10.0, steps_to_half=50, seconds_to_half=5.0,
)  # fmt: skip


@pytest.fixture
def league(tmp_path: Path) -> League:
    (tmp_path / "league.yaml").write_text(FILE)
    return read_league(tmp_path / "league.yaml")


def results_of(jobs: list[Job], **gains: tuple[float, float]) -> dict[str, Result]:
    """Results by name; ``gains`` holds (gain, obedience) by the letter of the job's place."""
    made = {}
    for job, (gain, obedience) in zip(jobs, gains.values(), strict=True):
        made[job.name] = replace(
            BASE, job=job.name, kind=job.kind, pipeline=job.pipeline, method=job.method, setting=job.setting,
            seed=job.seed, digest=playing.digest(job), gain=gain, obedience=obedience,
        )  # fmt: skip
    return made


def test_every_setting_is_tried_once_on_every_pipeline(league: League) -> None:
    jobs = list(sweep_jobs(league))
    assert len(jobs) == len({j.name for j in jobs}) == 8  # the base has nothing to try
    job = next(
        j
        for j in jobs
        if j.pipeline == "dit" and j.setting == {"objective.beta": 2, "optim.learning_rate": 0.4}
    )
    assert job.name == "dit/dpo/sweep-beta=2,learning_rate=0.4-s0"
    assert job.recipe == {
        "steps": 60, "optim": {"schedule": "cosine", "learning_rate": 0.4}, "seed": 0,
        "policy": {"model": "samples/shapes/unet"}, "error_weight": "eps_equivalent",
        "objective": {"name": "dpo", "beta": 2}, "evaluate": {"part": "select"}, "validate": {"every": 0},
    }  # fmt: skip


def test_the_largest_gain_that_obeys_is_chosen(league: League) -> None:
    jobs = [j for j in sweep_jobs(league) if j.pipeline == "unet"]
    some = results_of(jobs[:3], a=(0.2, 0.9), b=(0.4, 0.871), c=(0.9, 0.86))
    assert choose(league, some) == {("unet", "base"): {}, ("dit", "base"): {}}  # the sweep is not finished
    done = some | results_of(jobs[3:], d=(0.3, 0.95))
    assert choose(league, done)["unet", "dpo"] == jobs[1].setting
    lost = {n: replace(r, obedience=0.5 + 0.1 * r.gain) for n, r in done.items()}
    assert choose(league, lost)["unet", "dpo"] == jobs[2].setting  # none obeys: the most obedient


def test_the_first_seed_of_all_comes_before_the_others_of_the_known(league: League) -> None:
    setting = {"objective.beta": 2.0}
    jobs = list(main_jobs(league, {("unet", "base"): {}, ("unet", "dpo"): setting}))
    assert [(j.method, j.kind, j.seed, j.recipe["steps"]) for j in jobs] == [
        ("base", "main", 0, 100), ("dpo", "main", 0, 100), ("dpo", "main", 1, 100), ("dpo", "long", 0, 400),
    ]  # fmt: skip
    assert jobs[1].recipe["objective"] == {"name": "dpo", "beta": 2.0}


def test_one_pipeline_can_be_played_alone_and_the_best_known_come_first(
    league: League, tmp_path: Path
) -> None:
    alone = missing(league.on(["dit"]), tmp_path)
    assert {j.pipeline for j in alone} == {"dit"}
    assert league.on([]) == league
    known = [league.methods[j.method].known for j in missing(league, tmp_path)]
    assert known == sorted(known, reverse=True)
    assert set(known) == {True, False}
    with pytest.raises(ValueError, match=r"no pipeline 'unnet'.*unet, dit"):
        league.on(["unnet"])


def test_rows_rank_by_gain_but_the_disobedient_come_last(league: League) -> None:
    def run(method: str, gain: float, obedience: float, seed: int = 0) -> Result:
        return replace(
            BASE, job=f"{method}{seed}", kind="main", method=method, gain=gain, obedience=obedience, seed=seed
        )

    three = replace(league, methods={n: league.methods["dpo"] for n in ("a", "b", "c", "d")})
    found = [run("a", 0.3, 0.9), run("b", 0.9, 0.8), run("c", 0.5, 0.9), run("c", 0.3, 0.84, 1)]
    table = rows(three, {r.job: r for r in found}, "unet")
    assert [r.method for r in table] == ["c", "a", "b", "d"]  # c falls by exactly 3 points on the mean
    assert table[0].mean(lambda r: r.gain) == pytest.approx(0.4)
    assert not table[2].obeys
    assert table[0].at_half(lambda r: r.steps_to_half) == 50
    never = replace(table[0], runs=(BASE, replace(BASE, steps_to_half=None)))
    assert never.at_half(lambda r: r.steps_to_half) is None


def test_played_runs_are_kept_and_a_broken_one_does_not_end_the_league(
    league: League, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    played = []

    def play_one(job: Job, root: Path, tree: str) -> Result:
        played.append(job.name)
        if job.setting.get("objective.beta") == 1 and job.pipeline == "dit":
            raise RuntimeError("out of memory")
        result = next(iter(results_of([job], a=(0.5, 0.9)).values()))
        (root / job.name).mkdir(parents=True)
        save_result(root / job.name, result)
        return result

    monkeypatch.setattr(playing, "play_one", play_one)
    assert play(league, tmp_path, most=3) == 8 + 2 - 3  # the sweep and two runs of the base, so far
    left = play(league, tmp_path)
    assert len(played) == len(set(played))
    assert "dit/dpo/sweep-beta=1,learning_rate=0.3-s0 failed" in caplog.text
    assert left == 2  # the two that broke; the table of dit's dpo waits for them
    assert {j.name for j in missing(league, tmp_path)} == {n for n in played if "dit/dpo/sweep-beta=1" in n}
    changed = replace(league, common={**league.common, "batch": 8})
    assert len(missing(changed, tmp_path)) == 8 + 2  # none of the results is of this league


@pytest.mark.parametrize(
    ("objective", "corruptor", "kept"),
    [
        ("dpo", "independent_noise", True),
        ("dspo", "independent_noise", False),
        ("dpo", "ddim_inversion", False),
    ],
)
def test_tries_share_reference_errors_that_stand_still(
    objective: str, corruptor: str, kept: bool, tmp_path: Path
) -> None:
    recipe = {
        "policy": {"model": "x", "adapter": {"rank": 2}},
        "objective": {"name": objective},
        "corruptor": {"name": corruptor},
        "data": {"path": "x", "resolution": 64},
    }
    found = playing.with_kept_errors(recipe, tmp_path)
    assert found["data"].get("reference_errors") == (str(tmp_path) if kept else None)
    assert {**found["data"], "reference_errors": None} == {**recipe["data"], "reference_errors": None}


def test_a_run_that_other_work_held_up_does_not_set_the_seconds() -> None:
    runs = tuple(replace(BASE, seconds=s) for s in (50.0, 52.0, 2000.0))
    row = Row(method="dpo", pipeline="unet", known=True, runs=runs)
    assert COLUMNS["s a run"](row) == "52"


def test_the_page_says_what_has_not_been_run(league: League, tmp_path: Path) -> None:
    jobs = list(main_jobs(league, {("unet", "base"): {}, ("unet", "dpo"): {"objective.beta": 2.0}}))[:2]
    results = results_of(jobs, base=(0.0, 0.9), dpo=(0.62, 0.88))
    write_page(league, results, tmp_path / "new")
    tmp_path = tmp_path / "new"
    text = (tmp_path / "league.md").read_text()
    unet, dit = text.split("## dit")
    assert unet.index("| **`dpo`** | +0.62 | 0.700 [0.600, 0.800] | 88.0 (-2.0) |") < unet.index("`base`")
    assert dit.count("not run yet") == 2
    assert "(code abc)" in text
    assert (tmp_path / "league.png").stat().st_size > 10_000
    content: dict[str, Any] = json.loads((tmp_path / "league.json").read_text())
    assert [r["gain"] for r in content["results"]] == [0.0, 0.62]


def test_a_misspelt_method_option_is_refused(tmp_path: Path) -> None:
    (tmp_path / "league.yaml").write_text(FILE.replace("sweep:", "sweeps:"))
    with pytest.raises(ConfigError, match=r"unknown key 'methods.dpo.sweeps'; did you mean 'sweep'"):
        read_league(tmp_path / "league.yaml")


def test_a_new_checkout_goes_on_from_what_was_published(league: League, tmp_path: Path) -> None:
    job = next(iter(sweep_jobs(league)))
    found = {job.name: replace(BASE, job=job.name, digest=digest(job))}
    write_page(league, found, tmp_path / "docs")
    published = tmp_path / "docs" / "league.json"
    before = len(missing(league, tmp_path / "runs"))
    assert not (tmp_path / "docs" / "league.png").exists(), "a sweep alone gives nothing to draw"
    assert "league.png" not in (tmp_path / "docs" / "league.md").read_text()
    assert restore(published, tmp_path / "runs") == 1
    assert len(missing(league, tmp_path / "runs")) == before - 1
    save_result(tmp_path / "runs" / job.name, replace(found[job.name], gain=9.0))
    assert restore(published, tmp_path / "runs") == 0, "what is there already stays"
    assert load_results(tmp_path / "runs")[job.name].gain == 9.0
    assert restore(tmp_path / "nothing.json", tmp_path / "runs") == 0


def test_results_survive_their_file(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    save_result(tmp_path / "x", replace(BASE, job="x", setting={"objective.beta": 2.0}))
    assert load_results(tmp_path) == {"x": replace(BASE, job="x", setting={"objective.beta": 2.0})}


def test_every_recipe_of_the_packaged_league_loads() -> None:
    league = read_league(Path("training/league.yaml"))
    for job in sweep_jobs(league):
        load_recipe({**job.recipe, "output": "unused"})
    sizes = {len(m.settings(p)) for m in league.methods.values() for p in league.pipelines if m.sweep}
    assert sizes == {4}  # as many tries for each
    assert sum(m.known for m in league.methods.values()) >= 10
