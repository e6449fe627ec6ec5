"""Share of right pictures by what prompts ask for: GenEval's and TIAM's tables."""

from __future__ import annotations

import json
from collections.abc import Iterable

import numpy as np

from diffalign.evaluate.details import Range, as_range
from diffalign.evaluate.prompts import EvalPrompt
from diffalign.evaluate.seeds import is_binary
from diffalign.evaluate.stats import Floats, bootstrap, widened
from diffalign.evaluate.table import Table

Facets = dict[str, dict[str, list[int]]]
"""By facet and value, numbers of the prompts that ask for it."""


def facets_of(prompts: Iterable[EvalPrompt]) -> Facets:
    """Group prompts by number of objects, colour, relation and GenEval's tag, where they are known.

    They are known of prompts of the shapes world and of those with GenEval's metadata.
    """
    found: Facets = {}
    for i, prompt in enumerate(prompts):
        for facet, values in _asked(prompt).items():
            for value in dict.fromkeys(values):
                found.setdefault(facet, {}).setdefault(value, []).append(i)
    return {facet: dict(sorted(groups.items())) for facet, groups in found.items()}


def _asked(prompt: EvalPrompt) -> dict[str, list[str]]:
    if prompt.task:
        return _of_task(json.loads(prompt.task))
    from diffalign.world.grammar import parse

    try:
        meant = parse(prompt.prompt)
    except ValueError:
        return {}
    return {
        "objects": [str(len(meant.shapes))],
        "colour": list(meant.colours),
        "relation": [meant.relation] if meant.relation else [],
    }


def _of_task(task: dict[str, object]) -> dict[str, list[str]]:
    from scorers.tasks import Task

    meant = Task.of(task)
    return {
        "tag": [meant.tag],
        "objects": [str(sum(item.count for item in meant.include))],
        "colour": [item.colour for item in meant.include if item.colour],
        "relation": [item.position[0] for item in meant.include if item.position],
    }


def facet_tables(table: Table) -> dict[str, dict[str, dict[str, dict[str, Range]]]]:
    """Shares of right pictures by scorer (those that say right or wrong), model, facet and value.

    Intervals resample prompts; a value that one prompt has is left out. ``overall`` of GenEval is the mean of
    its tags, not of the pictures (Ghosh et al. 2023, arXiv:2310.11513).
    """
    facets = facets_of(table.prompts)
    scores = {name: s for name, s in table.scores.items() if is_binary(s)}
    if table.obedience is not None and "shapes-obedience" not in table.scores:
        scores.setdefault("obedience", table.obedience)
    if not facets:
        return {}
    return {
        name: {model: _of_model(values[i], facets) for i, model in enumerate(table.models)}
        for name, values in scores.items()
    }


def _of_model(right: Floats, facets: Facets) -> dict[str, dict[str, Range]]:
    found = {
        facet: {
            value: as_range(widened(bootstrap(right[rows].mean(1, keepdims=True))[0], len(rows)))
            for value, rows in groups.items()
            if len(rows) > 1
        }
        for facet, groups in facets.items()
    }
    tags = facets.get("tag", {})
    if len(tags) > 1 and all(len(rows) > 1 for rows in tags.values()):
        found["tag"]["overall"] = _mean_of_tags(right, list(tags.values()))
    return {facet: rows for facet, rows in found.items() if rows}


def _mean_of_tags(right: Floats, tags: list[list[int]], resamples: int = 2000) -> Range:
    """Prompts are resampled within their tag."""
    rng, per_prompt = np.random.default_rng(0), right.mean(1)
    drawn = [per_prompt[np.array(r)[rng.integers(len(r), size=(resamples, len(r)))]].mean(1) for r in tags]
    low, high = np.quantile(np.mean(drawn, axis=0), (0.025, 0.975))
    value = float(np.mean([per_prompt[rows].mean() for rows in tags]))
    return Range(value=value, low=float(low), high=float(high))
