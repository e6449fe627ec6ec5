"""Standings of three or more models by a scorer's paired outcomes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from diffalign.evaluate.bradley_terry import Duels, make_duels, standings
from diffalign.evaluate.details import Standing, as_range
from diffalign.evaluate.stats import Floats


def duels_of(scores: Floats, margin: float) -> Duels:
    """Every pair of models on every picture; arguments are (M, P, S) scores and the margin of a tie."""
    first, second, outcome, group = [], [], [], []
    models, prompts, seeds = scores.shape
    for i, j in combinations(range(models), 2):
        gain = (scores[i] - scores[j]).ravel()
        first.append(np.full(gain.size, i))
        second.append(np.full(gain.size, j))
        outcome.append(0.5 + 0.5 * ((gain > margin).astype(float) - (gain < -margin)))
        group.append(np.repeat(np.arange(prompts), seeds))
    columns = [np.concatenate(x) for x in (first, second, outcome, group)]
    return make_duels(models, *columns)


def named_standings(duels: Duels, models: Sequence[str]) -> list[Standing]:
    """Where each model stands against the first, the base."""
    return [
        Standing(
            model=model,
            gain=as_range(found.gain),
            rank=found.rank,
            rank_low=found.rank_low,
            rank_high=found.rank_high,
        )
        for model, found in zip(models, standings(duels), strict=True)
    ]
