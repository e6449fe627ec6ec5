import numpy as np
import pytest

from diffalign.evaluate.bradley_terry import bradley_terry, make_duels, standings


def played(table, models, groups=1):
    """Duels of {(first, second, outcome): count}."""
    rows = [key for key, count in table.items() for _ in range(count)]
    first, second, outcome = zip(*rows, strict=True)
    return make_duels(models, first, second, outcome, np.arange(len(rows)) % groups)


def simulated(strength, tie, votes, seed=0, side=0.0):
    rng = np.random.default_rng(seed)
    first = rng.integers(len(strength), size=votes)
    second = (first + rng.integers(1, len(strength), size=votes)) % len(strength)
    left = rng.choice([-1, 1], votes)
    half = (np.asarray(strength)[first] - np.asarray(strength)[second] + side * left) / 2
    mass = np.stack([np.exp(half), np.exp(-half), np.full(votes, tie)], 1)
    pick = (rng.random((votes, 1)) > np.cumsum(mass / mass.sum(1, keepdims=True), 1)).sum(1)
    return make_duels(
        len(strength), first, second, np.array([1, 0, 0.5])[pick], rng.integers(60, size=votes), left
    )


def test_never_beaten_is_finite():
    x = bradley_terry(played({(0, 1, 1.0): 10}, 2)).strength
    assert x[0] == -x[1]
    assert 10 / (1 + np.exp(2 * x[0])) == pytest.approx(0.1 * x[0])  # where the slope of the posterior is 0
    assert x[0] == pytest.approx(1.96, abs=0.01)


def test_closed_form_of_two_models_without_a_prior():
    fit = bradley_terry(played({(0, 1, 1.0): 60, (0, 1, 0.0): 20, (1, 0, 0.5): 40}, 2), prior=1e-9)
    assert fit.strength[0] - fit.strength[1] == pytest.approx(np.log(3))
    assert fit.tie == pytest.approx(40 / np.sqrt(60 * 20))  # nu = ties / geometric mean of wins and losses
    assert fit.win_rate(0, 1) == pytest.approx(80 / 120)
    assert fit.win_rate(0, 1) + fit.win_rate(1, 0) == pytest.approx(1)


def test_order_of_a_pair_does_not_matter():
    a = bradley_terry(played({(0, 1, 1.0): 7, (1, 2, 0.5): 3, (2, 0, 0.0): 4}, 3))
    b = bradley_terry(played({(1, 0, 0.0): 7, (2, 1, 0.5): 3, (0, 2, 1.0): 4}, 3))
    assert a.strength == pytest.approx(b.strength)
    assert a.tie == pytest.approx(b.tie)


def test_recovers_strengths_ties_and_side():
    truth = np.array([-0.6, 0.0, 0.1, 0.5])
    fit = bradley_terry(simulated(truth, 0.7, 20_000, side=0.4))
    assert fit.strength == pytest.approx(truth, abs=0.06)
    assert fit.tie == pytest.approx(0.7, abs=0.04)
    assert fit.left == pytest.approx(0.4, abs=0.05)


def test_standings_are_against_the_base():
    base, better, best = standings(simulated([0.0, 0.8, 2.0], 0.5, 900), resamples=300)
    assert (base.gain.value, base.gain.low, base.gain.high) == (0, 0, 0)
    assert better.gain.low < 0.8 < better.gain.high
    assert best.gain.low < 2.0 < best.gain.high
    assert [s.rank for s in (base, better, best)] == [3, 2, 1]
    assert (best.rank_low, best.rank_high) == (1, 1)


def test_equal_models_share_ranks():
    rows = standings(simulated([0.0, 0.0, 0.0], 0.5, 200), resamples=300)
    assert any(row.rank_low < row.rank_high for row in rows)
    assert all(row.gain.low <= 0 <= row.gain.high for row in rows)


def test_prompts_are_resampled_not_votes():
    rng, prompts, votes = np.random.default_rng(1), 40, 12
    side = np.repeat(rng.integers(2, size=prompts), votes).astype(float)  # all votes of a prompt alike
    first, second = np.tile([0, 0, 1], prompts * votes // 3), np.tile([1, 2, 2], prompts * votes // 3)
    whole = make_duels(3, first, second, side, np.repeat(np.arange(prompts), votes))
    loose = make_duels(3, first, second, side, np.arange(prompts * votes))
    wide, narrow = (standings(d, resamples=200)[2].gain for d in (whole, loose))
    assert (wide.high - wide.low) > 2 * (narrow.high - narrow.low)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first": [0, 1]}, "lengths"),
        ({"first": [1]}, "different models"),
        ({"second": [3]}, "different models"),
        ({"outcome": [0.7]}, "outcome"),
        ({"first": [], "second": [], "outcome": [], "group": []}, "above 0"),
    ],
)
def test_wrong_duels(change, message):
    with pytest.raises(ValueError, match=message):
        make_duels(**({"models": 3, "first": [0], "second": [1], "outcome": [1.0], "group": [0]} | change))


def test_one_prompt_has_no_interval():
    with pytest.raises(ValueError, match="at least 2"):
        standings(played({(0, 1, 1.0): 3, (1, 2, 1.0): 3}, 3))


def moved_by_prompts(prompts, rng):
    """Votes on every pair of 4 models, whose strengths differ from prompt to prompt."""
    pairs = np.array([(i, j) for i in range(4) for j in range(i + 1, 4)])
    strength = np.array([0.0, 0.3, 0.6, 1.0]) + 0.8 * rng.normal(size=(prompts, 4))
    gap = (strength[:, pairs[:, 0]] - strength[:, pairs[:, 1]]) / 2
    mass = np.stack([np.exp(gap), np.exp(-gap), np.full(gap.shape, 0.5)], 2)
    pick = (rng.random((prompts, 6, 1)) > np.cumsum(mass / mass.sum(2, keepdims=True), 2)).sum(2)
    first, second = (np.tile(pairs[:, k], prompts) for k in (0, 1))
    return make_duels(4, first, second, np.array([1, 0, 0.5])[pick].ravel(), np.repeat(np.arange(prompts), 6))


@pytest.mark.slow
def test_intervals_that_resample_prompts_cover():
    rng, repeats = np.random.default_rng(0), 300
    limit = bradley_terry(moved_by_prompts(30_000, rng)).strength  # effects of prompts flatten the strengths
    covered = 0
    for _ in range(repeats):
        rows = standings(moved_by_prompts(120, rng), resamples=400, rng=rng)[1:]
        truth = limit[1:] - limit[0]
        covered += sum(row.gain.low <= t <= row.gain.high for row, t in zip(rows, truth, strict=True))
    print(f"coverage of nominal 95 % by prompt bootstrap: {covered / repeats / 3:.3f}")
    assert 0.92 <= covered / repeats / 3 <= 0.98
