"""Votes in the order of asking: what people differ in comes first; no answer is seen before it is given."""

from __future__ import annotations

import numpy as np
import torch

from diffalign.personalize.evidence import PairFeatures
from diffalign.personalize.study_asking import asked_first, differences


def pair(*gap: float) -> PairFeatures:
    return torch.zeros(2), torch.tensor(gap), torch.zeros(2)


PAIRS = {10: pair(0.05, 1.0), 11: pair(1.0, 0.0), 12: pair(0.1, -1.0), 13: pair(-0.7, 0.2)}


def others() -> list[np.ndarray]:
    """Ten people who care for the first feature alone, half of them for its opposite."""
    draw = np.random.default_rng(0)
    found = []
    for i in range(10):
        x = draw.normal(size=(30, 2))
        found.append(x * np.sign(x[:, :1]) * (1 - 2 * (i % 2)))
    return found


def test_what_people_differ_in_is_asked_first() -> None:
    order = asked_first({"ann": [10, 11, 12, 13]}, PAIRS, others(), 3)["ann"]
    assert order[0] == 11
    assert len(set(order)) == 3
    assert asked_first({"ann": [10, 11]}, PAIRS, others(), 8)["ann"] == [11, 10]


def test_the_first_question_knows_no_answer() -> None:
    turned = {p: (c, loser, winner) for p, (c, winner, loser) in PAIRS.items()}
    for votes in (PAIRS, turned):
        assert asked_first({"ann": [10, 11, 12, 13]}, votes, others(), 1)["ann"] == [11]


def test_without_others_it_asks_too() -> None:
    assert len(asked_first({"ann": [10, 11]}, PAIRS, [], 2)["ann"]) == 2


def test_differences_are_of_winner_and_loser() -> None:
    np.testing.assert_allclose(differences([11, 13], PAIRS), [[1.0, 0.0], [-0.7, 0.2]], rtol=1e-6)
