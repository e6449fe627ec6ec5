"""What a league is: methods, pipelines, settings to try, and the runs that follow from them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from diffalign.config import load

Kind = Literal["sweep", "main", "long"]
Block = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row of the league."""

    recipe: dict[str, Any] = field(default_factory=dict)
    """Blocks of a recipe, merged over those that all runs share."""
    sweep: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Values that are tried of an option, by its dotted key; every combination is one setting."""
    known: bool = False
    """Whether it is one of the best-known methods, which are run with every seed and for longer."""

    def settings(self) -> list[dict[str, float]]:
        """All combinations of the swept values; one empty one where nothing is swept."""
        keys = list(self.sweep)
        return [dict(zip(keys, values, strict=True)) for values in itertools.product(*self.sweep.values())]


@dataclass(frozen=True, kw_only=True)
class League:
    """A league file."""

    common: dict[str, Any]
    """Recipe blocks of all runs."""
    pipelines: dict[str, dict[str, Any]]
    """Recipe blocks of each pipeline."""
    methods: dict[str, Method]
    """What competes."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the best-known methods; the others have the first one."""
    sweep_steps: int = 60
    """Steps of a run that tries a setting."""
    long_factor: int = 4
    """How many times the budget the runs have that look for over-optimisation."""

    def on(self, names: Sequence[str]) -> League:
        """The league on these pipelines alone; none named is all.

        Raises:
            ValueError: there is no such pipeline.
        """
        for name in names:
            if name not in self.pipelines:
                raise ValueError(f"no pipeline {name!r} in this league; it has {', '.join(self.pipelines)}")
        return replace(self, pipelines={n: self.pipelines[n] for n in names or self.pipelines})


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of a league."""

    kind: Kind
    pipeline: str
    method: str
    setting: Mapping[str, float]
    seed: int
    recipe: Block
    """The whole recipe, but for its output."""

    @property
    def name(self) -> str:
        """Name of the run's folder, e.g. ``unet/dpo/main-beta=2000,learning_rate=0.001-s0``."""
        values = ",".join(f"{k.rpartition('.')[2]}={v:g}" for k, v in sorted(self.setting.items()))
        return f"{self.pipeline}/{self.method}/{self.kind}-{values or 'fixed'}-s{self.seed}"


def read_league(path: Path) -> League:
    """Read and check a league file.

    Raises:
        ConfigError: a misspelt key or a wrong value.
    """
    return load(League, path)


def sweep_jobs(league: League) -> Iterator[Job]:
    """Runs that try the settings of every method that has several, judged on selection prompts.

    The best-known methods come first.
    """
    methods = sorted(league.methods.items(), key=lambda item: not item[1].known)
    for pipeline, (name, method) in itertools.product(league.pipelines, methods):
        settings = method.settings()
        for setting in settings if len(settings) > 1 else ():
            steps = {"steps": league.sweep_steps, "evaluate": {"part": "select"}, "validate": {"every": 0}}
            yield _job(league, "sweep", pipeline, name, setting, league.seeds[0], steps)


def main_jobs(league: League, chosen: Mapping[tuple[str, str], Mapping[str, float]]) -> Iterator[Job]:
    """The runs of the table; ``chosen`` holds the best setting by (pipeline, method).

    The first seed of every method comes first, then the other seeds of the best-known, then their long runs.
    """
    pairs = [(p, m) for m, p in itertools.product(league.methods, league.pipelines) if (p, m) in chosen]
    known = [(p, m) for p, m in pairs if league.methods[m].known]
    for pipeline, name in pairs:
        yield _job(league, "main", pipeline, name, chosen[pipeline, name], league.seeds[0], {})
    for seed, (pipeline, name) in itertools.product(league.seeds[1:], known):
        yield _job(league, "main", pipeline, name, chosen[pipeline, name], seed, {})
    for pipeline, name in known:
        steps = {"steps": league.long_factor * int(league.common["steps"])}
        yield _job(league, "long", pipeline, name, chosen[pipeline, name], league.seeds[0], steps)


def _job(
    league: League,
    kind: Kind,
    pipeline: str,
    name: str,
    setting: Mapping[str, float],
    seed: int,
    extra: Block,
) -> Job:
    blocks = (league.common, league.pipelines[pipeline], league.methods[name].recipe, extra, {"seed": seed})
    recipe: dict[str, Any] = {}
    for block in (*blocks, *(nested(key, value) for key, value in setting.items())):
        recipe = merged(recipe, block)
    return Job(kind=kind, pipeline=pipeline, method=name, setting=setting, seed=seed, recipe=recipe)


def merged(below: Block, above: Block) -> dict[str, Any]:
    """Blocks of two recipes in one; where both have a value the upper one's counts."""
    both = dict(below)
    for key, value in above.items():
        inner = both.get(key)
        both[key] = (
            merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
        )
    return both


def nested(key: str, value: Any) -> dict[str, Any]:
    """``a.b`` and a value to ``{a: {b: value}}``."""
    parts: Sequence[str] = key.split(".")
    for part in reversed(parts):
        value = {part: value}
    return dict(value)
