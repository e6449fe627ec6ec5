"""Intervals over prompts and raters: one rater, raters who differ, unequal numbers of votes."""

import math

import numpy as np
import pytest

from diffalign.evaluate.crossed import crossed_interval
from diffalign.evaluate.stats import widened


def test_interval_of_one_rater_is_that_of_prompts() -> None:
    rng = np.random.default_rng(0)
    outcomes = rng.integers(0, 2, 200).astype(float)
    prompts = [str(i // 4) for i in range(200)]  # four votes a prompt, independent
    found = crossed_interval(outcomes, prompts, ["r"] * 200)
    per_prompt = outcomes.reshape(50, 4).mean(1)
    expected = 2 * 1.96 * per_prompt.std(ddof=1) / math.sqrt(50)
    assert found.high - found.low == pytest.approx(expected, rel=0.1)


def test_interval_of_raters_who_differ_is_that_of_raters() -> None:
    """Four raters who always say the same: no number of prompts makes the interval narrow."""
    rate = np.array([1.0, 1.0, 0.0, 1.0])
    outcomes, raters = np.tile(rate, 500), ["a", "b", "c", "d"] * 500
    prompts = [str(i // 4) for i in range(2000)]
    found = crossed_interval(outcomes, prompts, raters)
    assert found.value == 0.75
    assert (found.low, found.high) == (0.25, 1.0)
    alone = crossed_interval(outcomes, prompts, ["one"] * 2000)
    assert alone.high - alone.low < 0.01


def test_a_rate_of_one_has_the_exact_interval() -> None:
    alike = crossed_interval(np.ones(10), [str(i) for i in range(10)], ["r"] * 10)
    assert (alike.low, alike.high) == (1.0, 1.0)
    found = widened(alike, 10)
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(0.025 ** (1 / 10))


def test_it_counts_votes_and_resamples_prompts() -> None:
    found = crossed_interval(np.array([1.0, 1.0, 1.0, 0.0]), ["p", "p", "p", "q"], ["r"] * 4)
    assert (found.value, found.low, found.high) == (0.75, 0.0, 1.0)  # either prompt may be drawn twice
