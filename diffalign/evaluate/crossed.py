"""Intervals of what several raters said of several prompts: both are resampled, crossed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffalign.evaluate.stats import ALPHA, Floats, Interval

RESAMPLES = 2000


def crossed_interval(
    values: Floats, prompts: Sequence[str], raters: Sequence[str], *, rng: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """Mean of (V,) values with its interval from resampling prompts and, crossed with them, raters.

    With a single rater only prompts are resampled, and the interval is about that rater. For a share that may
    be 0 or 1 in every prompt, give the result to ``stats.widened``.

    Args:
        values: one for each vote.
        prompts: (V,) prompt of each vote.
        raters: (V,) rater of each vote.
        rng: seed of the resampling.
        resamples: bootstrap samples.
    """
    names, p = np.unique(np.asarray(prompts), return_inverse=True)
    people, r = np.unique(np.asarray(raters), return_inverse=True)
    total, count = np.zeros((2, len(names), len(people)))
    np.add.at(total, (p, r), values)
    np.add.at(count, (p, r), 1.0)
    generator = np.random.default_rng(rng)
    w = generator.multinomial(len(names), [1 / len(names)] * len(names), resamples)  # (B, P)
    u = generator.multinomial(len(people), [1 / len(people)] * len(people), resamples)  # (B, R), 1 if R is 1
    weight = ((w @ count) * u).sum(1)
    seen = weight > 0  # raters who saw different prompts may be drawn so that nothing is left
    means = ((w @ total) * u).sum(1)[seen] / weight[seen]
    low, high = np.quantile(means, [ALPHA / 2, 1 - ALPHA / 2])
    return Interval(value=float(values.mean()), low=float(low), high=float(high))
