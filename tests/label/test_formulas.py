"""Soft labels, shares of wins, calibrated rewards and fronts by hand, and SmPO's published number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from diffalign.data import DataError
from diffalign.label.formulas import (
    calibrated_reward,
    pareto_fronts,
    smpo_probability,
    win_fraction,
    within_sd,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "offline" / "smpo_loss.npz"


def test_smpo_matches_the_published_implementation() -> None:
    g = np.load(GOLDEN)
    p = smpo_probability(g["pickscore_w"], g["pickscore_l"], float(g["score_min"]), float(g["score_max"]))
    np.testing.assert_allclose(p, g["prob_winner"], rtol=1e-6)
    back = smpo_probability(g["pickscore_l"], g["pickscore_w"], float(g["score_min"]), float(g["score_max"]))
    np.testing.assert_allclose(p + back, 1)


@pytest.mark.parametrize(
    ("low", "high", "message"), [(0, 0, "all scores are equal"), (0, 1, "outside SmPO's range")]
)
def test_smpo_refuses_a_wrong_range(low: float, high: float, message: str) -> None:
    with pytest.raises(DataError, match=message):
        smpo_probability(np.array([2.0]), np.array([0.0]), low, high)


def test_phi_is_the_share_of_wins_over_images_and_scorers() -> None:
    scores = np.array([[3.0, 2.0, 1.0, 1.0], [0.0, 5.0, 1.0, 2.0]])
    np.testing.assert_allclose(win_fraction(scores), [3 / 6, 5 / 6, 1.5 / 6, 2.5 / 6])
    assert win_fraction(scores).mean() == 0.5


def test_calibrated_rewards_are_mean_chances_against_the_siblings() -> None:
    def s(x: float) -> float:
        return 1 / (1 + np.exp(-x))

    scores, unit = np.array([[2.0, 0.0, -2.0], [0.0, 0.0, 3.0]]), np.array([2.0, 3.0])
    expected = [
        (s(1) + s(2) + 0.5 + s(-1)) / 4,
        (s(-1) + s(1) + 0.5 + s(-1)) / 4,
        (s(-2) + s(-1) + 2 * s(1)) / 4,
    ]
    np.testing.assert_allclose(calibrated_reward(scores, unit), expected)
    assert calibrated_reward(scores, unit).mean() == pytest.approx(0.5)


def test_fronts_are_peeled_off() -> None:
    scores = np.array([[3.0, 2.0, 1.0, 1.0, 0.0], [1.0, 2.0, 3.0, 1.0, 0.0]])
    assert pareto_fronts(scores).tolist() == [1, 1, 1, 2, 3]
    assert pareto_fronts(np.ones((2, 3))).tolist() == [1, 1, 1]


def test_a_single_image_and_a_blind_scorer_are_refused() -> None:
    for formula in (win_fraction, lambda s: calibrated_reward(s, np.ones(1))):
        with pytest.raises(DataError, match="ranking of one item"):
            formula(np.ones((1, 1)))
    with pytest.raises(DataError, match="scorer b gives all images"):
        within_sd([np.array([[1.0, 2.0], [5.0, 5.0]])], ["a", "b"])
    with pytest.raises(DataError, match="no prompt has two images"):
        within_sd([np.ones((2, 1))], ["a", "b"])
    groups = [np.array([[1.0, 3.0]]), np.array([[10.0, 10.0, 13.0]])]
    np.testing.assert_allclose(within_sd(groups, ["a"]), [np.sqrt((2 + 6) / 3)])
