"""Paired statistics against closed forms, exhaustive counts and a simulation of coverage."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from diffalign.evaluate.stats import (
    base_sd,
    bootstrap,
    clustered_standard_error,
    compare,
    holm,
    power_pairs,
    power_prompts,
    sign_flip_p,
)
from diffalign.evaluate.summary import t_quantile


def test_counts_wins_ties_and_losses_at_the_margin() -> None:
    gain = np.array([[0.2, 0.6], [-0.6, 0.5], [-0.5, 0.0], [3.0, -9.0]])
    found = compare(np.zeros((4, 2)), gain, sd=2.0, tie_margin_sd=0.25)
    assert (found.win_rate.wins, found.win_rate.ties, found.win_rate.losses) == (
        2,
        4,
        2,
    )  # a gain of 0.5 is a tie
    assert found.win_rate.value == 0.5
    zero = found.win_rate_zero_margin
    assert (zero.wins, zero.ties, zero.losses, zero.value) == (4, 1, 3, 4.5 / 8)
    assert zero.decided == 4 / 7
    assert found.mean_gain.value == pytest.approx(gain.mean())
    assert found.mean_gain_sd.value == pytest.approx(gain.mean() / 2)
    assert found.regression_rate.value == 0.25  # prompt means: .4, -.05, -.25, -3
    assert (found.prompts, found.seeds) == (4, 2)


def test_swapping_the_sides_mirrors_everything() -> None:
    rng = np.random.default_rng(3)
    base, model = rng.normal(size=(2, 40, 3))
    there, back = compare(base, model, sd=1.0), compare(model, base, sd=1.0)
    assert there.win_rate.value == pytest.approx(1 - back.win_rate.value)
    assert there.win_rate.low == pytest.approx(1 - back.win_rate.high)
    assert there.win_rate.wins == back.win_rate.losses
    assert there.mean_gain.low == pytest.approx(-back.mean_gain.high)
    assert there.p_value == back.p_value


def test_scale_of_the_judge_does_not_matter() -> None:
    base, model = np.random.default_rng(4).normal(size=(2, 30, 4))
    one, other = (
        compare(base, model, sd=base_sd(base)),
        compare(8 * base + 2, 8 * model + 2, sd=base_sd(8 * base + 2)),
    )
    assert one.win_rate == other.win_rate
    assert one.mean_gain_sd.low == pytest.approx(other.mean_gain_sd.low)
    assert one.p_value == other.p_value


def test_same_seed_same_result() -> None:
    base, model = np.random.default_rng(5).normal(size=(2, 30, 2))
    assert compare(base, model, sd=1.0, rng=7) == compare(base, model, sd=1.0, rng=np.random.default_rng(7))
    assert compare(base, model, sd=1.0, rng=7) != compare(base, model, sd=1.0, rng=8)


def test_equal_pictures_are_all_ties() -> None:
    scores = np.random.default_rng(0).normal(size=(20, 2))
    found = compare(scores, scores, sd=1.0)
    assert (found.win_rate.value, found.win_rate.ties, found.p_value) == (0.5, 40, 1.0)
    assert found.win_rate.decided == 0.5


def test_a_clean_sweep_still_has_an_interval() -> None:
    found = compare(np.zeros((20, 2)), np.ones((20, 2)), sd=1.0)
    # None of 20 prompts lost: the exact binomial bound, solved by hand from low ** 20 = 0.025.
    assert found.win_rate.low == pytest.approx(0.8316, abs=1e-4)
    assert found.win_rate.high == 1.0
    assert found.regression_rate.high == pytest.approx(1 - 0.8316, abs=1e-4)


def test_base_sd_pools_the_variance_within_prompts() -> None:
    base = [[0.0, 2.0], [100.0, 106.0]]  # variances 2 and 18; the distance between prompts does not count
    assert base_sd(base) == pytest.approx(math.sqrt(10))


def test_bootstrap_agrees_with_every_resample_counted() -> None:
    values = np.array([0.0, 1.0, 1.0, 4.0])
    every = [np.mean(draw) for draw in itertools.product(values, repeat=4)]
    (found,) = bootstrap(values[:, None], resamples=20_000)
    low, high = np.quantile(every, [0.025, 0.975])
    assert found.value == 1.5
    assert found.low == pytest.approx(low, abs=0.26)  # one step of the grid of quarters
    assert found.high == pytest.approx(high, abs=0.26)


def test_bootstrap_width_is_that_of_the_normal_law() -> None:
    values = np.random.default_rng(1).normal(size=(4000, 1))
    (found,) = bootstrap(values, resamples=4000)
    assert found.high - found.low == pytest.approx(2 * 1.96 / math.sqrt(4000), rel=0.05)


def test_clustered_standard_error_by_hand() -> None:
    outcomes = [[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]]  # prompt means 1, 0, .5: variance .25
    assert clustered_standard_error(outcomes) == pytest.approx(math.sqrt(0.25 / 3))


def test_bootstrap_and_clustered_error_agree_on_enough_prompts() -> None:
    base, model = np.random.default_rng(2).normal(size=(2, 300, 4))
    assert compare(base, model + 0.3, sd=1.0).win_rate.agrees


def test_sign_flip_counts_every_pattern_when_few() -> None:
    gains = np.array([1.0, 2.0, -0.5, 3.0, 1.5])
    patterns = itertools.product((1, -1), repeat=5)
    extreme = sum(abs(np.dot(signs, gains)) >= abs(gains.sum()) - 1e-9 for signs in patterns)
    assert sign_flip_p(gains) == extreme / 32
    assert sign_flip_p([1.0, 1.0, 1.0]) == 0.25
    assert sign_flip_p([0.1] * 12) == 2 / 2**12  # equal sums in another order of rounding


def test_sign_flip_at_random_meets_the_exact_value() -> None:
    gains = np.random.default_rng(6).normal(0.4, 1, size=13)
    exact, drawn = sign_flip_p(gains, flips=2**13), sign_flip_p(gains, flips=2**13 - 1)
    assert drawn == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 2**13))
    assert exact != drawn


def test_sign_flip_is_never_zero_and_repeats_for_a_seed() -> None:
    assert sign_flip_p(np.ones(200), flips=999) == 1 / 1000
    gains = np.random.default_rng(0).normal(size=50)
    assert sign_flip_p(gains, rng=1) == sign_flip_p(gains, rng=1) != sign_flip_p(gains, rng=2)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(("p", "pairs"), [(0.55, 783), (0.575, 347), (0.6, 194), (0.65, 85)])
def test_power_of_the_table(p: float, pairs: int) -> None:
    assert power_pairs(p) == power_pairs(1 - p) == pairs


def test_power_prompts_discounts_correlated_seeds() -> None:
    assert power_prompts(0.55, seeds=1, correlation=0.3) == 783
    assert power_prompts(0.55, seeds=4, correlation=0.0) == 196
    assert power_prompts(0.55, seeds=4, correlation=0.3) == math.ceil(783 * 1.9 / 4)
    assert power_prompts(0.55, seeds=4, correlation=1.0) == 783


@pytest.mark.parametrize("p", [0.5, 0.0, 1.0, 1.2])
def test_power_refuses_what_cannot_be_planned(p: float) -> None:
    with pytest.raises(ValueError, match="cannot be planned"):
        power_pairs(p)


def test_clear_errors() -> None:
    good = np.zeros((3, 2))
    for base, model, sd, message in [
        (good, np.zeros((3, 3)), 1.0, "both need the same prompts and seeds"),
        (np.zeros(3), np.zeros(3), 1.0, r"expected \(prompts, seeds\)"),
        (good[:1], good[:1], 1.0, "at least 2"),
        (good, np.array([[0, 0], [0, math.nan], [0, 0]]), 1.0, "model score of prompt 1, seed 1 is nan"),
        (good, good, 0.0, "sd is 0.0"),
        (good, good, math.nan, "sd is nan"),
    ]:
        with pytest.raises(ValueError, match=message):
            compare(base, model, sd=sd)
    with pytest.raises(ValueError, match="tie_margin_sd is -1"):
        compare(good, good, sd=1.0, tie_margin_sd=-1)
    with pytest.raises(ValueError, match="at least 2 seeds"):
        base_sd(np.zeros((5, 1)))
    with pytest.raises(ValueError, match="same base score"):
        base_sd(np.full((5, 3), 0.1))


@pytest.mark.slow
def test_intervals_cover_the_truth_when_seeds_are_correlated() -> None:
    """Truth 55 %, 100 prompts x 4 seeds, outcomes of correlation 0.3; an interval over all pairs fails.

    Of 2,000 repeats the share that is covered has a standard error of 0.5 points.
    """
    rng, repeats, threshold = np.random.default_rng(0), 2000, 0.12566  # P(normal < 0.12566) = 0.55
    latent = math.sin(0.3 * math.pi / 2)  # correlation of normals whose signs correlate by 0.3
    t = t_quantile(0.975, 99)
    covered = clustered = naive = 0
    for _ in range(repeats):
        own = math.sqrt(1 - latent) * rng.normal(size=(100, 4))
        gain = threshold + math.sqrt(latent) * rng.normal(size=(100, 1)) + own
        found = compare(
            np.zeros((100, 4)), gain, sd=1.0, tie_margin_sd=0.0, rng=rng, resamples=500, flips=1
        ).win_rate
        covered += found.low <= 0.55 <= found.high
        clustered += abs(found.value - 0.55) <= t * found.standard_error
        naive += abs(found.value - 0.55) <= 1.96 * math.sqrt(found.value * (1 - found.value) / 400)
    print(
        f"coverage of nominal 95 %: prompt bootstrap {covered / repeats:.3f}, clustered "
        f"{clustered / repeats:.3f}, all pairs {naive / repeats:.3f}"
    )
    assert 0.93 <= covered / repeats <= 0.97
    assert 0.93 <= clustered / repeats <= 0.97
    assert naive / repeats < 0.9


def test_t_quantiles_of_the_tables() -> None:
    for freedom, value in ((3, 3.182446), (5, 2.570582), (10, 2.228139), (30, 2.042272), (99, 1.984217)):
        assert t_quantile(0.975, freedom) == pytest.approx(value, rel=1e-2 if freedom < 10 else 1e-4)


@pytest.mark.slow
def test_sign_flip_rejects_a_true_null_at_its_level() -> None:
    rng = np.random.default_rng(1)
    rejected = [sign_flip_p(rng.standard_t(3, size=40), rng=rng, flips=500) <= 0.05 for _ in range(600)]
    assert 0.03 <= np.mean(rejected) <= 0.075
