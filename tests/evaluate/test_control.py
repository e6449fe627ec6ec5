"""Win rate at equal covariates: closed form, a planted bias, and what cannot be controlled for."""

from __future__ import annotations

import numpy as np
import pytest

from diffalign.evaluate.control import ControlError, logistic, win_rate_at_equal

T = 1.984  # Student's t, 99 degrees of freedom


def biased(
    rng: np.random.Generator, gain: float, prompts: int = 100, seeds: int = 4
) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes of a judge that likes saturation, and the differences of saturation: the model has more of it.

    The effect of a prompt is shared by its seeds.
    """
    saturation = 0.8 + rng.normal(size=(prompts, seeds))
    taste = 0.5 * rng.normal(size=(prompts, 1))
    logit = gain + 1.5 * saturation + taste
    return (rng.random((prompts, seeds)) < 1 / (1 + np.exp(-logit))).astype(float), saturation


def test_one_group_of_columns_is_the_share_of_wins():
    y = np.array([1.0, 1.0, 1.0, 0.0, 0.5, 1.0])
    fit = logistic(np.ones((6, 1)), y, np.arange(6.0), np.zeros(1))
    share = y.mean()
    assert fit.coefficients[0] == pytest.approx(np.log(share / (1 - share)))
    # The sandwich of an intercept is the variance of the mean, by the delta method, with G / (G - 1).
    variance = ((y - share) ** 2).sum() / 36 / (share * (1 - share)) ** 2 * 6 / 5
    assert fit.covariance[0, 0] == pytest.approx(variance)


def test_a_binary_covariate_splits_the_pairs():
    # Where it is 0, 3 of 4 pairs are won, whatever happens where it is 1.
    outcomes = np.array([[1, 1, 1, 0], [1, 0, 0, 0]], dtype=float)
    found = win_rate_at_equal(outcomes, {"x": np.array([[0.0] * 4, [1.0] * 4])}, 1.96)
    assert found.value == pytest.approx(0.75, abs=0.01)  # the ridge pulls a little


def test_planted_saturation_bias_is_taken_out():
    outcomes, saturation = biased(np.random.default_rng(0), gain=0.0)
    raw, controlled = outcomes.mean(), win_rate_at_equal(outcomes, {"saturation": saturation}, T)
    assert raw > 0.65
    assert controlled.low < 0.5 < controlled.high
    assert controlled.high - controlled.low < 0.25


def test_a_true_gain_stays():
    outcomes, saturation = biased(np.random.default_rng(1), gain=1.0)
    found = win_rate_at_equal(outcomes, {"saturation": saturation}, T)
    assert found.low > 0.5
    assert found.value < outcomes.mean()


@pytest.mark.slow
def test_interval_under_control_covers_one_half():
    covered = raw = 0
    repeats = 300
    for seed in range(repeats):
        outcomes, saturation = biased(np.random.default_rng(seed), gain=0.0)
        found = win_rate_at_equal(outcomes, {"saturation": saturation}, T)
        covered += found.low <= 0.5 <= found.high
        error = outcomes.mean(1).std(ddof=1) / 10
        raw += abs(outcomes.mean() - 0.5) <= T * error
    print(f"coverage of one half: {covered / repeats:.3f} under control, {raw / repeats:.3f} raw")
    assert 0.92 <= covered / repeats <= 0.98
    assert raw == 0


def test_prompts_are_the_clusters():
    rng = np.random.default_rng(2)
    won = np.repeat(rng.integers(2, size=(60, 1)), 8, 1).astype(float)  # all seeds of a prompt alike
    x = rng.normal(size=won.shape)
    whole = win_rate_at_equal(won, {"x": x}, 1.96)
    loose = win_rate_at_equal(won.reshape(-1, 1), {"x": x.reshape(-1, 1)}, 1.96)
    assert (whole.high - whole.low) > 2 * (loose.high - loose.low)


@pytest.mark.parametrize(
    ("outcomes", "differences", "message"),
    [
        (np.ones((1, 3)), {"x": np.ones((1, 3))}, "1 prompt"),
        (np.eye(3), {"x": np.zeros((3, 3))}, "x is equal in all pairs"),
        (np.ones((4, 2)), {"x": np.arange(8.0).reshape(4, 2)}, "nearly every pair|all alike"),
    ],
)
def test_what_cannot_be_controlled_for(outcomes, differences, message):
    with pytest.raises(ControlError, match=message):
        win_rate_at_equal(outcomes, differences, 1.96)
