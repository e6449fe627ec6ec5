"""Paired statistics of two models: win rate with ties, bootstrap over prompts, sign-flip test, Holm, power.

The unit is the prompt: the seeds of one prompt are correlated, so every interval resamples prompts.
(With four seeds a prompt and a correlation of 0.3, an interval over all pairs covers 85 % instead of 95 %.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
ALPHA = 0.05
"""One minus the confidence of every interval."""
_CHUNK = 1_000_000  # numbers drawn at once, so that memory stays flat


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class WinRate(Interval):
    """Share of pairs that the model wins, a tie counting half; the counts are of pairs (prompt and seed)."""

    wins: int
    ties: int
    losses: int
    standard_error: float
    """Clustered by prompt."""

    @property
    def decided(self) -> float:
        """Wins among the pairs that are no tie; 0.5 when every pair is a tie."""
        return self.wins / (self.wins + self.losses) if self.wins + self.losses else 0.5

    @property
    def agrees(self) -> bool:
        """Whether bootstrap and clustered standard error differ by at most a quarter."""
        expected = 2 * NormalDist().inv_cdf(1 - ALPHA / 2) * self.standard_error
        return abs(self.high - self.low - expected) <= 0.25 * expected


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What one judge says about a model against its base, over P prompts with S seeds each."""

    prompts: int
    seeds: int
    sd: float
    tie_margin_sd: float
    win_rate: WinRate
    win_rate_zero_margin: WinRate
    mean_gain: Interval
    """In the judge's own units."""
    mean_gain_sd: Interval
    """In units of ``sd``."""
    regression_rate: Interval
    """Share of prompts whose gain, averaged over their seeds, is below minus the margin."""
    p_value: float
    """Two-sided sign-flip permutation test of no gain, over prompts."""


def compare(
    base: ArrayLike,
    model: ArrayLike,
    *,
    sd: float,
    tie_margin_sd: float = 0.25,
    rng: np.random.Generator | int = 0,
    resamples: int = 2000,
    flips: int = 10_000,
) -> Comparison:
    """Compare a model with its base by one judge's scores of paired pictures.

    Args:
        base: (P, S) scores of the base's pictures, higher is better.
        model: (P, S) scores of the model's pictures, same prompts and seeds.
        sd: unit of the tie margin, as a rule ``base_sd`` of the base's scores; above 0.
        tie_margin_sd: a gain of at most this many ``sd`` either way is a tie; at least 0.
        rng: generator, or the seed of one.
        resamples: bootstrap samples of prompts.
        flips: random sign flips of the permutation test.

    Raises:
        ValueError: shapes differ, one prompt only, a score that is not finite, or an option out of range.
    """
    gain = _scores(model, "model") - _scores(base, "base", like=model)
    _check_options(len(gain), sd, tie_margin_sd, resamples, flips)
    generator = np.random.default_rng(rng)
    margin = tie_margin_sd * sd
    per_prompt = gain.mean(1)
    columns = [
        _outcomes(gain, margin).mean(1),
        _outcomes(gain, 0.0).mean(1),
        per_prompt,
        per_prompt < -margin,
    ]
    won, won_zero, mean, worse = bootstrap(
        np.stack(columns, 1).astype(float), rng=generator, resamples=resamples
    )
    return Comparison(
        prompts=gain.shape[0],
        seeds=gain.shape[1],
        sd=sd,
        tie_margin_sd=tie_margin_sd,
        win_rate=_win_rate(_outcomes(gain, margin), won),
        win_rate_zero_margin=_win_rate(_outcomes(gain, 0.0), won_zero),
        mean_gain=mean,
        mean_gain_sd=Interval(value=mean.value / sd, low=mean.low / sd, high=mean.high / sd),
        regression_rate=widened(worse, len(gain)),
        p_value=sign_flip_p(per_prompt, rng=generator, flips=flips),
    )


def base_sd(base: ArrayLike) -> float:
    """Return the seed-to-seed standard deviation within a prompt of (P, S) scores, pooled, with ddof 1.

    Raises:
        ValueError: one seed only, or all seeds of every prompt score the same.
    """
    scores = _scores(base, "base")
    if scores.shape[1] < 2:
        raise ValueError(
            "base_sd needs at least 2 seeds per prompt, got 1: generate more seeds, or give `sd` yourself"
        )
    sd = float(np.sqrt(scores.var(axis=1, ddof=1).mean()))
    if sd <= 1e-12 * float(np.abs(scores).max(initial=1.0)):
        raise ValueError(
            "every seed of every prompt has the same base score: check the judge, or give `sd` yourself"
        )
    return sd


def bootstrap(
    per_prompt: ArrayLike, *, rng: np.random.Generator | int = 0, resamples: int = 2000
) -> list[Interval]:
    """Return the mean of each column of (P, K) with its percentile interval, resampling the P prompts."""
    values = np.asarray(per_prompt, dtype=float)
    generator, prompts = np.random.default_rng(rng), len(values)
    drawn = [
        values[generator.integers(prompts, size=(rows, prompts))].mean(1)
        for rows in _chunks(resamples, values.size)
    ]
    low, high = np.quantile(np.concatenate(drawn), [ALPHA / 2, 1 - ALPHA / 2], axis=0)
    triples = zip(values.mean(0), low, high, strict=True)
    return [Interval(value=float(v), low=float(a), high=float(b)) for v, a, b in triples]


def clustered_standard_error(outcomes: ArrayLike) -> float:
    """Return the standard error of the mean of (P, S) outcomes, clustered by prompt, with ddof 1."""
    per_prompt = np.asarray(outcomes, dtype=float).mean(1)
    return float(per_prompt.std(ddof=1) / math.sqrt(len(per_prompt)))


def sign_flip_p(per_prompt: ArrayLike, *, rng: np.random.Generator | int = 0, flips: int = 10_000) -> float:
    """Return the two-sided p-value of a mean of zero for (P,) paired gains, by flipping their signs.

    All 2**P sign patterns are counted when they are no more than ``flips``; otherwise ``flips`` random ones,
    with the observed pattern counted as one more, so that p is never 0.
    """
    gains = np.asarray(per_prompt, dtype=float)
    observed = (
        abs(gains.sum()) - 1e-12 * np.abs(gains).sum()
    )  # rounding must not turn an equal sum into a smaller one

    def extreme(negative: NDArray[np.integer]) -> int:
        return int((np.abs(gains.sum() - 2 * (negative @ gains)) >= observed).sum())

    if 2 ** len(gains) <= flips:
        patterns = np.arange(2 ** len(gains))[:, None] >> np.arange(len(gains)) & 1
        return extreme(patterns) / len(patterns)
    generator = np.random.default_rng(rng)
    counts = (
        extreme(generator.integers(2, size=(rows, len(gains)), dtype=np.int8))
        for rows in _chunks(flips, len(gains))
    )
    return (1 + sum(counts)) / (1 + flips)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for being several (Holm 1979), in the given order."""
    order = np.argsort(p_values)
    scaled = np.asarray(p_values, dtype=float)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return [float(p) for p in adjusted]


def power_pairs(p: float, *, power: float = 0.8, alpha: float = ALPHA) -> int:
    """Return how many independent pairs show that a true win rate ``p`` is not one half (two-sided, no ties).

    Raises:
        ValueError: ``p`` is 0.5 or outside (0, 1).
    """
    if not 0 < p < 1 or p == 0.5:
        raise ValueError(f"win rate {p} cannot be planned for: give one between 0 and 1 other than 0.5")
    quantile: Callable[[float], float] = NormalDist().inv_cdf
    spread = quantile(1 - alpha / 2) * 0.5 + quantile(power) * math.sqrt(p * (1 - p))
    return math.ceil((spread / (p - 0.5)) ** 2)


def power_prompts(
    p: float, *, seeds: int, correlation: float, power: float = 0.8, alpha: float = ALPHA
) -> int:
    """Return how many prompts that takes at ``seeds`` pairs each, correlated within a prompt."""
    pairs = power_pairs(p, power=power, alpha=alpha)
    return math.ceil(pairs * (1 + (seeds - 1) * correlation) / seeds)


def _scores(values: ArrayLike, name: str, like: ArrayLike | None = None) -> Floats:
    scores = np.asarray(values, dtype=float)
    if scores.ndim != 2 or 0 in scores.shape:
        raise ValueError(
            f"{name} scores have shape {scores.shape}: expected (prompts, seeds), neither of them 0"
        )
    if like is not None and scores.shape != np.shape(like):
        raise ValueError(
            f"{name} scores have shape {scores.shape}, the model's {np.shape(like)}: "
            "both need the same prompts and seeds"
        )
    if not np.isfinite(scores).all():
        prompt, seed = np.argwhere(~np.isfinite(scores))[0]
        value = scores[prompt, seed]
        raise ValueError(
            f"{name} score of prompt {prompt}, seed {seed} is {value}: look at that picture and its judge"
        )
    return scores


def _check_options(prompts: int, sd: float, tie_margin_sd: float, resamples: int, flips: int) -> None:
    if prompts < 2:
        raise ValueError(f"{prompts} prompt is not enough for an interval: give at least 2")
    if not (math.isfinite(sd) and sd > 0):
        raise ValueError(f"sd is {sd}: it must be above 0; base_sd(base) gives the usual one")
    if not (math.isfinite(tie_margin_sd) and tie_margin_sd >= 0):
        raise ValueError(f"tie_margin_sd is {tie_margin_sd}: it must be 0 or more")
    if min(resamples, flips) < 1:
        raise ValueError(f"resamples is {resamples} and flips {flips}: both must be at least 1")


def _outcomes(gain: Floats, margin: float) -> Floats:
    """Turn gains into 1 for a win, 0.5 for a tie and 0 for a loss."""
    return 0.5 + 0.5 * ((gain > margin).astype(float) - (gain < -margin))


def _win_rate(outcomes: Floats, interval: Interval) -> WinRate:
    interval = widened(interval, len(outcomes))
    return WinRate(
        value=interval.value,
        low=interval.low,
        high=interval.high,
        wins=int((outcomes == 1).sum()),
        ties=int((outcomes == 0.5).sum()),
        losses=int((outcomes == 0).sum()),
        standard_error=clustered_standard_error(outcomes),
    )


def widened(interval: Interval, prompts: int) -> Interval:
    """Widen the interval of a share that is 0 or 1 in every prompt, where the bootstrap has no width at all.

    It becomes the exact binomial interval with one trial a prompt (Clopper and Pearson 1934).
    """
    bound = (ALPHA / 2) ** (1 / prompts)
    if interval.value == 0.0:
        return Interval(value=0.0, low=0.0, high=1 - bound)
    return Interval(value=1.0, low=bound, high=1.0) if interval.value == 1.0 else interval


def _chunks(rows: int, width: int) -> Iterator[int]:
    """Split ``rows`` draws of ``width`` numbers into parts that fit in memory."""
    step = max(1, _CHUNK // width)
    yield from (min(step, rows - start) for start in range(0, rows, step))
