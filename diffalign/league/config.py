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
class Variant:
    """What is different about a method on one pipeline."""

    recipe: dict[str, Any] = field(default_factory=dict)
    """Blocks merged over the method's."""
    sweep: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Values tried here, instead of the method's; empty takes those."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row of the league."""

    recipe: dict[str, Any] = field(default_factory=dict)
    """Blocks of a recipe, merged over those that all runs share."""
    sweep: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Values that are tried of an option, by its dotted key; every combination is one setting."""
    known: bool = False
    """Whether it is one of the best-known methods, which are run with every seed and for longer."""
    pipelines: tuple[str, ...] = ()
    """Pipelines that it exists on; empty is all of them."""
    on: dict[str, Variant] = field(default_factory=dict)
    """What is different on single pipelines."""
    like: str = ""
    """Method of the parent league whose blocks and chosen settings it takes; its own blocks go over them."""

    def exists_on(self, pipeline: str) -> bool:
        """Whether there is such a method for a pipeline."""
        return not self.pipelines or pipeline in self.pipelines

    def recipe_on(self, pipeline: str) -> dict[str, Any]:
        """Its blocks on a pipeline."""
        return merged(self.recipe, self.on[pipeline].recipe) if pipeline in self.on else self.recipe

    def settings(self, pipeline: str) -> list[dict[str, float]]:
        """All combinations of the values swept on a pipeline; one empty one where nothing is swept."""
        own = self.on[pipeline].sweep if pipeline in self.on else {}
        return combinations(own or self.sweep)


@dataclass(frozen=True, kw_only=True)
class League:
    """A league file, or that of a study: one question on a few methods, with settings of a parent league."""

    pipelines: dict[str, dict[str, Any]]
    """Recipe blocks of each pipeline."""
    methods: dict[str, Method]
    """What competes."""
    common: dict[str, Any] = field(default_factory=dict)
    """Recipe blocks of all runs; of a study they go over its parent's."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the best-known methods; the others have the first one."""
    sweep_steps: int = 60
    """Steps of a run that tries a setting."""
    long_factor: int = 4
    """How many times the budget the runs have that look for over-optimisation; 0 makes none."""
    parent: str = ""
    """League file whose blocks, methods (``like``) and chosen settings a study takes; empty for a league."""
    parent_runs: str = "outputs/league"
    """Folder of the parent's runs, in which its settings were chosen."""
    vary: dict[str, tuple[int | float, ...]] = field(default_factory=dict)
    """Values of a study's option, by its dotted key; every method is run at each, and nothing is chosen."""
    title: str = "League of the objectives"
    """Heading of the page."""
    intro: str = ""
    """What the page says below its heading; empty takes the league's own text."""
    columns: tuple[str, ...] = ()
    """Columns of the table, by name; empty takes the league's."""
    draw: Literal["scatter", "curve", "online", "none"] = "scatter"
    """Picture: gain against obedience; a line for each method over the varied option; of online methods, the
    trained reward over pictures and the win rate over seconds; none."""
    families: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Methods of a kind, which share a hue in the picture of online methods; the others are grey there."""

    def points(self) -> list[dict[str, float]]:
        """All combinations of what is varied; one empty one where nothing is."""
        return combinations(self.vary)

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
    """Read and check a league file, or a study with its parent.

    Raises:
        ConfigError: a misspelt key or a wrong value.
        ValueError: names that do not fit, or a study that is like a method that its parent lacks.
    """
    league = load(League, path)
    check_names(league)
    return based_on(league, load(League, Path(league.parent))) if league.parent else league


def check_names(league: League) -> None:
    """Check that pipelines, parents, families and pictures that a file names are there.

    Raises:
        ValueError: says what is not, and what there is.
    """
    for name, method in league.methods.items():
        unknown = sorted({*method.pipelines, *method.on} - set(league.pipelines))
        if unknown and not league.parent:
            raise ValueError(
                f"methods.{name} names pipeline {unknown[0]!r}; there are {', '.join(league.pipelines)}"
            )
        if method.like and not league.parent:
            raise ValueError(f"methods.{name}.like is {method.like!r}, and no parent league is named")
    strange = sorted({m for some in league.families.values() for m in some} - set(league.methods))
    if strange:
        raise ValueError(f"families names {strange[0]!r}; there are {', '.join(league.methods)}")
    if league.draw == "curve" and len(league.vary) != 1:
        raise ValueError("draw is curve, which needs one option under vary")


def based_on(study: League, parent: League) -> League:
    """A study with the blocks that it takes of its parent written out.

    Raises:
        ValueError: a method is like one that the parent lacks.
    """
    lacking = [m.like for m in study.methods.values() if m.like and m.like not in parent.methods]
    if lacking:
        raise ValueError(f"like names {lacking[0]!r}; {study.parent} has {', '.join(parent.methods)}")
    return replace(
        study,
        common=merged(parent.common, study.common),
        pipelines={n: merged(parent.pipelines.get(n, {}), own) for n, own in study.pipelines.items()},
        methods={n: _like(m, parent.methods[m.like]) if m.like else m for n, m in study.methods.items()},
    )


def _like(method: Method, model: Method) -> Method:
    """A method with the blocks of the one that it is like; that one's sweep is the parent's affair."""
    on = {n: replace(v, sweep={}) for n, v in model.on.items()} | method.on
    return replace(
        method,
        recipe=merged(model.recipe, method.recipe),
        on=on,
        pipelines=method.pipelines or model.pipelines,
    )


def combinations(values: Mapping[str, Sequence[float]]) -> list[dict[str, float]]:
    """Every combination of one value of each option."""
    return [dict(zip(values, some, strict=True)) for some in itertools.product(*values.values())]


def sweep_jobs(league: League) -> Iterator[Job]:
    """Runs that try the settings of every method that has several, judged on selection prompts.

    The best-known methods come first.
    """
    methods = sorted(league.methods.items(), key=lambda item: not item[1].known)
    for pipeline, (name, method) in itertools.product(league.pipelines, methods):
        settings = method.settings(pipeline) if method.exists_on(pipeline) else []
        for setting in settings if len(settings) > 1 else ():
            steps = {"steps": league.sweep_steps, "evaluate": {"part": "select"}, "validate": {"every": 0}}
            yield _job(league, "sweep", pipeline, name, setting, league.seeds[0], steps)


def main_jobs(league: League, chosen: Mapping[tuple[str, str], Mapping[str, float]]) -> Iterator[Job]:
    """The runs of the table; ``chosen`` holds the best setting by (pipeline, method).

    The first seed of every method comes first, then the other seeds of the best-known, then their long runs.
    A study has a run at each of its points, and all of its methods have every seed.
    """
    pairs = [(p, m) for m, p in itertools.product(league.methods, league.pipelines) if (p, m) in chosen]
    known = [(p, m) for p, m in pairs if league.methods[m].known or league.parent]
    for seed in league.seeds:
        for pipeline, name in pairs if seed == league.seeds[0] else known:
            for point in league.points():
                setting = {**chosen[pipeline, name], **point}
                yield _job(league, "main", pipeline, name, setting, seed, {})
    for pipeline, name in known if league.long_factor and not league.parent else ():
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
    own = league.methods[name].recipe_on(pipeline)
    blocks = (league.common, league.pipelines[pipeline], own, extra, {"seed": seed})
    recipe: dict[str, Any] = {}
    for block in (*blocks, *(nested(key, value) for key, value in setting.items())):
        recipe = merged(recipe, block)
    recipe = in_rounds(recipe)
    return Job(kind=kind, pipeline=pipeline, method=name, setting=setting, seed=seed, recipe=recipe)


def in_rounds(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe with its steps shared out over its rounds, so that those see as many pictures in all."""
    if not recipe.get("losers"):
        return recipe
    return recipe | {"steps": max(1, int(recipe["steps"]) // int(recipe["losers"]["iterations"]))}


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
