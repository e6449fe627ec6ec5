"""Tastes in votes without names: opposite tastes are found, one head is plain Bradley-Terry."""

from __future__ import annotations

import numpy as np
import pytest

from diffalign.personalize.em import mixture
from diffalign.votes.explain import newton

TRUE = np.array([[2.0, 0.5], [-2.0, 0.5]])


def votes(
    sessions: int, each: int, share: float = 0.7
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    taste = (rng.random(sessions) > share).astype(int)
    session = np.repeat(np.arange(sessions), each)
    x = rng.normal(size=(len(session), 2))
    z = (x * TRUE[taste[session]]).sum(1)
    return x, (rng.random(len(z)) < 1 / (1 + np.exp(-z))).astype(float), session, taste


def test_opposite_tastes_are_found() -> None:
    x, y, session, taste = votes(120, 10)
    found = mixture(x, y, session, 2)
    assert np.abs(found.heads - TRUE).max() < 0.35
    assert found.shares == pytest.approx([0.7, 0.3], abs=0.1)
    assert (found.responsibility.argmax(1) == taste).mean() > 0.95
    assert (np.diff(found.objective) > -1e-8).all()
    one = mixture(x, y, session, 1)
    assert found.objective[-1] > one.objective[-1] + 100


def test_one_head_is_bradley_terry() -> None:
    x, y, session, _ = votes(30, 4)
    expected, _ = newton(x, y, 0.1)
    found = mixture(x, y, session, 1)
    assert found.heads[0] == pytest.approx(expected, abs=1e-8)
    assert found.predict(x) == pytest.approx(1 / (1 + np.exp(-x @ expected)))


def test_the_first_round_by_hand() -> None:
    """One feature, two sessions that say the opposite: each head takes one, and they mirror each other."""
    x, y = np.ones((40, 1)), np.array([1.0] * 20 + [0.0] * 20)
    found = mixture(x, y, np.repeat([0, 1], 20), 2, ridge=1.0)
    assert found.heads[0, 0] == pytest.approx(-found.heads[1, 0])
    w = abs(found.heads[0, 0])  # 20 (1 - sigma(w)) = w at the top of the posterior
    assert 20 / (1 + np.exp(w)) == pytest.approx(w, abs=1e-4)


def test_what_cannot_be_fitted_is_refused() -> None:
    x, y, session, _ = votes(3, 2)
    with pytest.raises(ValueError, match="4 heads, 3 sessions"):
        mixture(x, y, session, 4)
    with pytest.raises(ValueError, match="one row for each"):
        mixture(x, y[:2], session, 2)
