"""Which votes of somebody new come first: those that a belief about people would ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from diffalign.evaluate.stats import Floats
from diffalign.personalize.ask import Belief, learn, next_pair, of_people, vague
from diffalign.personalize.evidence import PairFeatures


def asked_first(
    votes: Mapping[str, Sequence[int]],
    features: Mapping[int, PairFeatures],
    others: Sequence[Floats],
    most: int,
) -> dict[str, list[int]]:
    """Each person's votes in the order in which ``personalize.ask`` would ask for them, ``most`` of them.

    The choice of the next pair sees the answers to those before it alone.

    Args:
        votes: positions of the decided pairs that each person would be asked about.
        features: of these pairs.
        others: (V, F) winner less loser in features, of each person whose votes say what people are like.
        most: how many are asked.
    """
    prior = of_people([(x, np.ones(len(x))) for x in others])
    found = {}
    for name, positions in votes.items():
        x = differences(positions, features)
        order = _order(prior or vague(x.shape[1]), x, min(most, len(positions)))
        found[name] = [positions[i] for i in order]
    return found


def differences(positions: Sequence[int], features: Mapping[int, PairFeatures]) -> Floats:
    """(V, F) features of the winner less those of the loser."""
    rows = [(features[p][1] - features[p][2]).double().numpy() for p in positions]
    out: Floats = np.stack(rows)
    return out


def _order(prior: Belief, x: Floats, most: int) -> list[int]:
    chosen: list[int] = []
    while len(chosen) < most:
        belief = learn(prior, x[chosen], np.ones(len(chosen)))
        chosen.append(next_pair(belief, x, chosen))  # how telling a pair is does not depend on its sign
    return chosen
