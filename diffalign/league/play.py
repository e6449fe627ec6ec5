"""Playing a league: runs that have no result yet, one after the other or several at once."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import multiprocessing
import shutil
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from diffalign.evaluate.report import Report
from diffalign.league.config import Job, League, main_jobs, merged, read_league, sweep_jobs
from diffalign.league.results import HALF, Result, choose, current, load_results, save_result
from diffalign.train.run import RunFolder

log = logging.getLogger(__name__)

UNFINISHED = ".unfinished"
"""Ending of the folder of a run that has not ended; what a killed league leaves is made again."""
KEPT = "reference_errors"
"""Folder of the errors that the tries of a sweep share."""


def play(league: League, root: Path, *, most: int = 0, at_once: int = 1) -> int:
    """Make the runs that are missing: the sweep first, then the table.

    Args:
        league: what to run.
        root: folder of the runs.
        most: stop after so many runs; 0 = when all are made.
        at_once: how many processes work; more than one only helps on a GPU.

    Returns:
        Number of runs that are still missing.
    """
    tree, made, failed = revision(), 0, set[str]()
    while True:
        todo = [j for j in missing(league, root) if j.name not in failed]
        some = todo[: min(len(todo), at_once, most - made if most else at_once)]
        if not some:
            return len(missing(league, root))
        for name, error in _side_by_side(some, root, tree, at_once):
            log.error("%s failed, and its row stays empty: %s", name, error)
            failed.add(name)
        made += len(some)


def missing(league: League, root: Path) -> list[Job]:
    """Runs without a valid result, in the order in which they are to be made: the best-known methods with
    all of theirs before the others.
    """
    results = load_results(root)
    jobs = list(sweep_jobs(league))
    later = list(main_jobs(league, chosen(league, root)))
    everything = sorted([*jobs, *later], key=lambda j: not league.methods[j.method].known)
    return current(everything, results, {j.name: digest(j) for j in everything})


def all_valid(league: League, root: Path) -> dict[str, Result]:
    """Results of this league's runs as they are now."""
    results = load_results(root)
    jobs = [*sweep_jobs(league), *main_jobs(league, chosen(league, root))]
    valid, by_name = valid_results(jobs, results), {j.name: j for j in jobs}
    return {name: with_rewards(by_name[name], result, root) for name, result in valid.items()}


def with_rewards(job: Job, result: Result, root: Path) -> Result:
    """A result from before rewards were kept with theirs, where its run's metrics are still there."""
    if result.rewards:
        return result
    folder = root / job.name
    rounds = sorted(folder.glob("round-*")) or [folder]
    lines = [row for r in rounds for row in RunFolder(root=r).rows()]
    return replace(result, rewards=reward_curve(job, lines))


def chosen(league: League, root: Path) -> dict[tuple[str, str], Mapping[str, float]]:
    """Settings by (pipeline, method): the league's own choice, and its parent's where it is like one."""
    own = choose(league, valid_results(list(sweep_jobs(league)), load_results(root)))
    if not league.parent:
        return own
    parent = chosen(read_league(Path(league.parent)), Path(league.parent_runs))
    taken = {
        (p, name): parent[p, method.like]
        for p, (name, method) in itertools.product(league.pipelines, league.methods.items())
        if method.exists_on(p) and (p, method.like) in parent
    }
    return taken | own


def valid_results(jobs: Sequence[Job], results: Mapping[str, Result]) -> dict[str, Result]:
    """Results that belong to these jobs as they are now."""
    wanted = {j.name: digest(j) for j in jobs}
    return {name: r for name, r in results.items() if wanted.get(name) == r.digest}


def _side_by_side(jobs: Sequence[Job], root: Path, tree: str, at_once: int) -> list[tuple[str, Exception]]:
    """Failures of the jobs, by name."""
    failures: list[tuple[str, Exception]] = []
    if at_once == 1:
        for job in jobs:
            _guarded(lambda job=job: play_one(job, root, tree), job.name, failures)  # type: ignore[misc]
        return failures
    with ProcessPoolExecutor(at_once, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(play_one, job, root, tree): job.name for job in jobs}
        for future in as_completed(futures):
            _guarded(future.result, futures[future], failures)
    return failures


def _guarded(run: Callable[[], object], name: str, failures: list[tuple[str, Exception]]) -> None:
    try:
        run()
    except Exception as error:  # one method that breaks must not end a night of runs
        failures.append((name, error))


def play_one(job: Job, root: Path, tree: str) -> Result:
    """Make one run and store its result; the folder has its name only when it is whole."""
    from diffalign.train.align import align

    folder = root / job.name
    work = folder.with_name(folder.name + UNFINISHED)
    for old in (work, folder):
        shutil.rmtree(old, ignore_errors=True)
    recipe = with_kept_errors(job.recipe, root / KEPT) if job.kind == "sweep" else job.recipe
    run = align({**recipe, "output": str(work)})
    if run.report is None:
        raise ValueError(f"{job.name} was not evaluated: its recipe needs evaluate.prompts above 0")
    rounds = sorted(work.glob("round-*")) or [run.dir]
    result = result_of(job, run.report, [RunFolder(root=folder) for folder in rounds], tree)
    save_result(work, result)
    for folder_of, heavy in itertools.product(rounds, ("checkpoints", "export")):
        shutil.rmtree(folder_of / heavy, ignore_errors=True)
    work.rename(folder)
    return result


def with_kept_errors(recipe: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """The recipe of a try, with reference errors that all tries share, where they stay the same.

    The runs of the table keep none, so that their seconds are those of a run on its own.
    """
    from diffalign.train.align import is_online, load_recipe
    from diffalign.train.terms import check_kept_errors

    if recipe.get("losers") or is_online(recipe):  # each try has pictures of its own
        return recipe
    config = load_recipe(recipe)
    try:
        check_kept_errors(config.corruptor, config.all_terms, config.policy.reference)
    except ValueError:  # they would not be the same in another run
        return recipe
    return merged(recipe, {"data": {"reference_errors": str(folder)}})


def result_of(job: Job, report: Report, rounds: Sequence[RunFolder], tree: str) -> Result:
    """Figures of a finished run, which is one folder, or one for each of its rounds."""
    first, seconds, reached = report["comparisons"][0], list[float](), list[int]()
    for run in rounds:
        reached += [len(seconds) + v["step"] for v in run.validations() if v["mean_gain_sd"] >= HALF]
        seconds += [line["timing"].get("seconds", 0.0) for line in run.rows()]
    half, lines = min(reached, default=None), [line for run in rounds for line in run.rows()]
    return Result(
        job=job.name, kind=job.kind, pipeline=job.pipeline, method=job.method, setting=dict(job.setting),
        seed=job.seed, digest=digest(job), tree=tree, judge=first["metric"],
        gain=first["mean_gain_sd"], win_rate=first["win_rate"],
        ci_low=first["ci_low"], ci_high=first["ci_high"],
        obedience_base=report["obedience"]["base"], obedience=report["obedience"]["model"],
        diversity_base=report["diversity"]["base"]["vendi"], diversity=report["diversity"]["model"]["vendi"],
        steps=len(seconds), seconds=sum(seconds),
        steps_to_half=half, seconds_to_half=None if half is None else sum(seconds[:half]),
        rewards=reward_curve(job, lines), **online_figures(lines),
    )  # fmt: skip


def online_figures(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What only online runs have: pictures made, and the trained reward at both ends (a tenth each)."""
    rewards = [next((v for k, v in line.items() if k.startswith("reward/")), None) for line in lines]
    found = [r for r in rewards if r is not None]
    some = max(1, len(found) // 10)
    return {
        "pictures": int(sum(line.get("pictures", 0) for line in lines)),
        "reward_first": statistics.fmean(found[:some]) if found else None,
        "reward_last": statistics.fmean(found[-some:]) if found else None,
    }


def reward_curve(job: Job, lines: Sequence[Mapping[str, Any]]) -> tuple[float | None, ...]:
    """The first trained reward at each iteration, with four digits; see Result.rewards for what has none."""
    asked = job.recipe.get("rewards") or [{}]
    names = [k for k in (lines[0] if lines else {}) if k.startswith("reward/")]
    if not names or asked[0].get("among", "alone") != "alone":
        return ()
    values = [line.get(names[0]) for line in lines]
    return tuple(None if v is None else float(f"{v:.4g}") for v in values)


def digest(job: Job) -> str:
    """Of the recipe and of the weights it starts from: a result of other ones is not this job's."""
    from diffalign.assets import asset

    weights = weights_digest(asset(str(job.recipe["policy"]["model"])))
    recipe = json.dumps(plain(job.recipe), sort_keys=True)
    return hashlib.sha256(f"{weights}{recipe}".encode()).hexdigest()[:16]


@cache
def weights_digest(folder: Path) -> str:
    """sha256 over the weights of a pipeline's folder; they are taken to stay as they are meanwhile."""
    found = hashlib.sha256()
    for file in sorted(folder.glob("*/*.safetensors")):
        found.update(file.read_bytes())
    return found.hexdigest()


def plain(value: Any) -> Any:
    """Mappings and tuples as JSON has them."""
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


def revision() -> str:
    """Short commit of the tree, with a + where it has changes; empty outside a repository."""
    ask = ["git", "describe", "--always", "--dirty=+", "--abbrev=10", "--exclude=*"]
    try:
        done = subprocess.run(ask, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    except OSError:  # no git on this machine
        return ""
    return done.stdout.strip()
