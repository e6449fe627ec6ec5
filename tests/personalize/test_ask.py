"""Asking: the information by hand, what it prefers, and that asked pairs teach faster than random ones."""

from __future__ import annotations

import numpy as np
import pytest

from diffalign.personalize.ask import Belief, expected_information, learn, next_pair, of_people, rank, vague
from diffalign.votes.explain import newton


def test_information_by_hand() -> None:
    chance = np.array([[1.0, 0.5, 0.9, 0.8], [0.0, 0.5, 0.9, 0.2]])
    entropy = -0.8 * np.log(0.8) - 0.2 * np.log(0.2)
    found = expected_information(chance)
    assert found == pytest.approx([np.log(2), 0.0, 0.0, np.log(2) - entropy], abs=1e-9)


def test_what_is_known_is_not_asked_again() -> None:
    """Of two alike features the one that no vote was about is worth more."""
    x = np.array([[2.0, 0.0], [0.0, 2.0], [0.1, 0.0], [0.0, 0.0]])
    belief = learn(vague(2), np.array([[2.0, 0.0]] * 20), np.array([1.0, 0.0] * 10))
    value, order = rank(belief, x)
    assert order[0] == 1
    assert value[1] > 2 * value[0]
    assert value[3] == pytest.approx(0.0, abs=1e-9)
    assert next_pair(belief, x, [1]) == 0
    with pytest.raises(ValueError, match="all 4 pairs were asked"):
        next_pair(belief, x, range(4))


def test_learning_from_nothing_known_is_the_ridge() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 3)), (rng.random(30) < 0.5).astype(float)
    w, hessian = newton(x, y, 0.25)
    found = learn(vague(3, spread=2.0), x, y)
    assert found.mean == pytest.approx(w, abs=1e-8)
    assert found.covariance == pytest.approx(np.linalg.inv(hessian), abs=1e-8)
    assert learn(found, x[:0], y[:0]) is found


def test_others_votes_say_what_people_are_like() -> None:
    rng = np.random.default_rng(1)
    true = rng.normal(size=(40, 2)) * [2.0, 0.2] + [0.0, 1.0]
    votes = []
    for w in true:
        x = rng.normal(size=(60, 2))
        votes.append((x, (rng.random(60) < 1 / (1 + np.exp(-x @ w))).astype(float)))
    belief = of_people(votes)
    assert belief.mean == pytest.approx([0.0, 1.0], abs=0.5)
    assert belief.covariance[0, 0] > 5 * belief.covariance[1, 1]
    assert rank(belief, np.eye(2))[1][0] == 0  # people differ in the first feature
    assert of_people(votes[:2]) is None


@pytest.mark.slow
def test_asked_pairs_teach_faster_than_random_ones() -> None:
    """Six features of which three differ little between pairs: share of pairs foretold after 8 votes."""
    asked, drawn = [], []
    for person in range(24):
        rng = np.random.default_rng(person)
        true = 2 * rng.normal(size=6)
        x = rng.normal(size=(100, 6)) * [2, 2, 2, 0.3, 0.3, 0.3]
        won = (rng.random(100) < 1 / (1 + np.exp(-x @ true))).astype(float)
        chosen: list[int] = []
        for turn in range(8):
            chosen.append(next_pair(learn(vague(6, 2.0), x[chosen], won[chosen]), x, chosen, rng=turn))
        for some, right in ((chosen, asked), (list(range(8)), drawn)):
            belief = learn(vague(6, 2.0), x[some], won[some])
            right.append(np.mean((x @ belief.mean > 0) == (x @ true > 0)))
    assert np.mean(asked) > np.mean(drawn) + 0.02


def test_features_must_be_finite() -> None:
    with pytest.raises(ValueError, match="not all finite"):
        next_pair(Belief(mean=np.zeros(1), covariance=np.eye(1)), np.array([[np.nan]]))
