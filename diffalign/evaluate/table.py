"""All that was measured on the pictures of an evaluation, as arrays, and its results.jsonl."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from diffalign.evaluate.measure import DIVERSITY, OBEDIENCE, STATISTICS, Values, collect, file_digest
from diffalign.evaluate.prompts import EvalPrompt
from diffalign.evaluate.request import Request, scorer_name
from diffalign.evaluate.results import Row, prompt_id
from diffalign.evaluate.stats import Floats

Places = dict[tuple[str, str], Values]


@dataclass(frozen=True, kw_only=True)
class Table:
    """M models (the base first), P prompts, S seeds."""

    models: tuple[str, ...]
    prompts: tuple[EvalPrompt, ...]
    seeds: int
    scores: dict[str, Floats]
    """(M, P, S) by scorer, the primary one first; higher is better."""
    statistics: dict[str, Floats]
    """(M, P, S) by image statistic."""
    diversity: dict[str, Floats]
    """(M, P) by measure of diversity."""
    obedience: Floats | None = None
    """(M, P, S) in the shapes world: 1 where a picture shows what was asked."""


def table_of(request: Request) -> Table:
    """Everything that ``measure_all`` kept for a request."""
    found = collect(request)
    names = [scorer_name(s) for s in (*request.scorers, *request.trained_on)]
    sets = [DIVERSITY, *map(scorer_name, request.sets)]
    return Table(
        models=tuple(m.name for m in request.models),
        prompts=request.prompts,
        seeds=request.seeds,
        scores={name: _array(request, found[name], "score") for name in names},
        statistics=_arrays(request, found[STATISTICS]),
        diversity={k: v[..., 0] for name in sets for k, v in _arrays(request, found[name]).items()},
        obedience=_array(request, found[OBEDIENCE], "score") if OBEDIENCE in found else None,
    )


def _arrays(request: Request, places: Places) -> dict[str, Floats]:
    names = next(iter(places.values()))
    return {name: _array(request, places, name) for name in names}


def _array(request: Request, places: Places, name: str) -> Floats:
    return np.array([[places[m.name, p.prompt][name] for p in request.prompts] for m in request.models])


def rows_of(request: Request, table: Table) -> list[Row]:
    """Rows of results.jsonl: model by model, prompts in the order of their file."""
    return [
        _row(request, table, (i, j, seed), prompt)
        for i in range(len(table.models))
        for j, prompt in enumerate(table.prompts)
        for seed in range(table.seeds)
    ]


def _row(request: Request, table: Table, place: tuple[int, int, int], prompt: EvalPrompt) -> Row:
    model, _, seed = place
    file = request.picture(table.models[model], prompt.prompt, seed)
    with Image.open(file) as picture:
        width, height = picture.size
    return Row(
        prompt_id=prompt_id(prompt.prompt), prompt=prompt.prompt, category=prompt.category,
        challenge=prompt.challenge, seed=seed, model=table.models[model],
        path=file.relative_to(request.output).as_posix(), width=width, height=height,
        sha256=file_digest(file), scores={name: float(v[place]) for name, v in table.scores.items()},
    )  # fmt: skip


def by_category(prompts: Sequence[EvalPrompt], key: Callable[[EvalPrompt], str]) -> dict[str, list[int]]:
    """Numbers of the prompts of each kind, in the order of their first; the kind "" is none."""
    found: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        if key(prompt):
            found.setdefault(key(prompt), []).append(i)
    return found
