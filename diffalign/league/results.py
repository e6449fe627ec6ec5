"""Results of a league: one file for each run, written as it ends, and what they add up to."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from diffalign.league.config import Job, League
from diffalign.train.run import write_text

RESULT = "league.json"
MOST_LOST = 0.03
"""Fall of prompt obedience up to which a gain counts."""
ENOUGH = 0.7
"""Win rate over the base that a method is to reach."""
HALF = 0.5
"""Gain in s.d. of which the steps and seconds are stated."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one run found."""

    job: str
    kind: str
    pipeline: str
    method: str
    setting: Mapping[str, float]
    seed: int
    digest: str
    """Of the recipe and of the base weights; a result of another one does not count."""
    tree: str
    """Revision of the code."""
    judge: str
    gain: float
    """Mean gain in s.d. of the base."""
    win_rate: float
    ci_low: float
    ci_high: float
    obedience_base: float
    obedience: float
    diversity_base: float
    diversity: float
    steps: int
    seconds: float
    """Of the training alone."""
    steps_to_half: int | None
    """First validation at which the gain reached half an s.d."""
    seconds_to_half: float | None
    pictures: int = 0
    """That an online run made and had judged."""
    reward_first: float | None = None
    """Mean trained reward of the first iterations of an online run."""
    reward_last: float | None = None
    """The same of the last ones."""
    rewards: tuple[float | None, ...] = ()
    """Mean trained reward at each iteration of an online run, None where it was not finite; empty where the
    reward is a win rate among the pictures of a prompt, whose mean is one half however good they are."""

    @property
    def obeys(self) -> bool:
        """Whether prompt obedience fell by no more than is allowed."""
        return self.obedience >= self.obedience_base - MOST_LOST - 1e-9


def save_result(folder: Path, result: Result) -> None:
    """Write a run's result into its folder."""
    write_text(folder / RESULT, json.dumps(asdict(result), indent=1) + "\n")


def load_results(root: Path) -> dict[str, Result]:
    """All results under a league's folder, by the name of their job."""
    found = [_result(json.loads(file.read_text())) for file in sorted(root.rglob(RESULT))]
    return {r.job: r for r in found}


def _result(content: Mapping[str, Any]) -> Result:
    """A result as it was saved; fields that its time did not know have their defaults."""
    return Result(**{**content, "rewards": tuple(content.get("rewards", ()))})


def restore(published: Path, root: Path) -> int:
    """Put results of a published league.json where there is none yet, so that a new checkout goes on from it.

    Returns:
        How many were put back.
    """
    if not published.is_file():
        return 0
    here, listed = load_results(root), json.loads(published.read_text())["results"]
    missing = [_result(one) for one in listed if one["job"] not in here]
    for result in missing:
        (root / result.job).mkdir(parents=True, exist_ok=True)
        save_result(root / result.job, result)
    return len(missing)


def choose(league: League, results: Mapping[str, Result]) -> dict[tuple[str, str], Mapping[str, float]]:
    """Best setting by (pipeline, method): the largest gain among those that obey, else the most obedient.

    Methods with one setting are always there, those whose sweep is not finished are not, nor those that take
    their settings of a parent league.
    """
    chosen: dict[tuple[str, str], Mapping[str, float]] = {}
    for pipeline in league.pipelines:
        here = {n: m for n, m in league.methods.items() if m.exists_on(pipeline)}
        for name, method in here.items():
            settings = method.settings(pipeline)
            if method.like and not any(settings):
                continue
            tried = [r for r in _of(results, "sweep", pipeline, name) if dict(r.setting) in settings]
            if len(settings) == 1:
                chosen[pipeline, name] = settings[0]
            elif len(tried) == len(settings):
                chosen[pipeline, name] = max(tried, key=_merit).setting
    return chosen


def _merit(result: Result) -> tuple[bool, float]:
    return result.obeys, result.gain if result.obeys else result.obedience


def _of(results: Mapping[str, Result], kind: str, pipeline: str, method: str) -> list[Result]:
    wanted = (kind, pipeline, method)
    return [r for r in results.values() if (r.kind, r.pipeline, r.method) == wanted]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the league table: means over seeds."""

    method: str
    pipeline: str
    known: bool
    runs: tuple[Result, ...]
    long: Result | None = None
    sweep: tuple[Result, ...] = ()
    point: Mapping[str, float] = field(default_factory=dict)
    """Of a study: values of what is varied."""
    exists: bool = True
    """Whether there is such a method for the pipeline."""

    def mean(self, of: Callable[[Result], float]) -> float:
        """Mean of a figure over the seeds."""
        return statistics.fmean(of(r) for r in self.runs)

    def median(self, of: Callable[[Result], float]) -> float:
        """Median of a figure over the seeds: for wall-clock times, which other work stretches."""
        return statistics.median(of(r) for r in self.runs)

    def at_half(self, of: Callable[[Result], float | None]) -> float | None:
        """Median over the seeds of steps or seconds to half an s.d.; None where a seed never got there."""
        found = [of(r) for r in self.runs]
        reached = [f for f in found if f is not None]
        return statistics.median(reached) if len(reached) == len(found) else None

    @property
    def obeys(self) -> bool:
        """Whether the mean obedience fell by no more than is allowed."""
        return self.mean(lambda r: r.obedience - r.obedience_base) >= -MOST_LOST - 1e-9


def rows(league: League, results: Mapping[str, Result], pipeline: str) -> list[Row]:
    """Rows of one pipeline: obedient ones by gain, then the others by gain, then those without a run.

    Rows of a study stay in the order of its file: methods, and within them the points.
    """
    made = [
        Row(
            method=name,
            pipeline=pipeline,
            known=method.known,
            runs=tuple(r for r in _of(results, "main", pipeline, name) if _at(r, point)),
            long=next(iter(_of(results, "long", pipeline, name)), None),
            sweep=tuple(_of(results, "sweep", pipeline, name)),
            point=point,
            exists=method.exists_on(pipeline),
        )
        for name, method in league.methods.items()
        for point in league.points()
    ]
    return made if league.parent else sorted(made, key=_rank)


def _at(result: Result, point: Mapping[str, float]) -> bool:
    return all(result.setting.get(key) == value for key, value in point.items())


def _rank(row: Row) -> tuple[bool, bool, bool, float]:
    if not row.runs:
        return True, not row.exists, True, 0.0
    return False, False, not row.obeys, -row.mean(lambda r: r.gain)


def current(jobs: Sequence[Job], results: Mapping[str, Result], digests: Mapping[str, str]) -> list[Job]:
    """Jobs that are still to be run: without a result, or whose recipe or base has changed since."""
    return [j for j in jobs if j.name not in results or results[j.name].digest != digests[j.name]]
