"""Strengths of three or more models from paired outcomes: Bradley-Terry with Davidson's ties.

P(i beats j), P(j beats i) and P(tie) stand as exp(d / 2), exp(-d / 2) and nu, with d = s_i - s_j + g z: s are
log-strengths, z says who was on the left, and g is the advantage of that side (Davidson 1970, JASA 65;
Davidson and Beaver 1977 for the side). A weak normal prior of precision 0.1 on every parameter keeps a model
finite that never lost. With two models there is nothing to fit: give the win rate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffalign.evaluate.stats import ALPHA, Floats, Interval

Integers = NDArray[np.int64]
PRIOR = 0.1
"""Precision of the prior on log-strengths, log nu and the advantage of the side."""
_STEPS = 200  # of Newton; from zero it takes about ten


@dataclass(frozen=True, kw_only=True)
class Duels:
    """V outcomes of pairs of models."""

    models: int
    """K, how many models there are."""
    first: Integers
    """(V,) number of one model of the pair, from 0."""
    second: Integers
    """(V,) number of the other."""
    outcome: Floats
    """(V,) 1 where the first won, 0.5 for a tie, 0 where the second won."""
    group: Integers
    """(V,) number of the prompt; intervals resample prompts."""
    left: Integers
    """(V,) +1 where the first was on the left, -1 where the second was, 0 where there were no sides."""


@dataclass(frozen=True, kw_only=True)
class BradleyTerry:
    """A fit to K models."""

    strength: Floats
    """(K,) log-strengths, of mean 0."""
    tie: float
    """Davidson's nu: at equal strength a tie is so many times as likely as a win of one; 0 without ties."""
    left: float
    """Log-odds that being on the left adds, among decided pairs; 0 where no sides were given."""

    def win_rate(self, i: int, j: int) -> float:
        """Expected share of pairs that model i wins against model j, ties counting half, sides balanced."""
        half = (self.strength[i] - self.strength[j]) / 2
        win, loss = np.exp(half), np.exp(-half)
        return float((win + self.tie / 2) / (win + loss + self.tie))


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where one model stands."""

    gain: Interval
    """Log-strength minus that of the base, with its interval; the base's own is 0."""
    rank: int
    """1 for the strongest."""
    rank_low: int
    """Best rank in the 95 % range of the bootstrap."""
    rank_high: int
    """Worst rank in that range."""


def make_duels(
    models: int,
    first: ArrayLike,
    second: ArrayLike,
    outcome: ArrayLike,
    group: ArrayLike,
    left: ArrayLike | None = None,
) -> Duels:
    """Check V outcomes; arguments as the fields of ``Duels``.

    Raises:
        ValueError: no outcomes, lengths that differ, a model against itself or of no number, another outcome.
    """
    one, two, groups = (np.asarray(x, dtype=np.int64) for x in (first, second, group))
    sides = np.zeros(len(one), dtype=np.int64) if left is None else np.asarray(left, dtype=np.int64)
    won = np.asarray(outcome, dtype=float)
    lengths = {len(x) for x in (one, two, groups, sides, won)}
    if lengths != {len(one)} or not len(one):
        raise ValueError(f"duels have columns of lengths {sorted(lengths)}: expected one length above 0")
    if (one == two).any() or min(one.min(), two.min()) < 0 or max(one.max(), two.max()) >= models:
        raise ValueError(f"duels are between two different models, numbered 0 to {models - 1}")
    if not np.isin(won, (0.0, 0.5, 1.0)).all() or not np.isin(sides, (-1, 0, 1)).all():
        raise ValueError("an outcome is 1, 0.5 or 0, and a side 1, -1 or 0")
    return Duels(models=models, first=one, second=two, outcome=won, group=groups, left=sides)


def bradley_terry(duels: Duels, *, prior: float = PRIOR) -> BradleyTerry:
    """Fit the model by maximum likelihood under the prior.

    Args:
        duels: what ``make_duels`` returned.
        prior: precision of the prior, above 0.

    Raises:
        ValueError: ``prior`` is not above 0.
    """
    design, counts = _cells(duels)
    x = _fit(design, counts.sum(0, keepdims=True), prior)[0]
    k = duels.models
    return BradleyTerry(
        strength=x[:k] - x[:k].mean(),
        tie=float(np.exp(x[k])) if (duels.outcome == 0.5).any() else 0.0,
        left=float(x[k + 1]),
    )


def standings(
    duels: Duels,
    *,
    base: int = 0,
    rng: np.random.Generator | int = 0,
    resamples: int = 1000,
    prior: float = PRIOR,
) -> list[Standing]:
    """Return each model's strength against the base and its rank, with intervals that resample prompts.

    Raises:
        ValueError: one prompt only, or ``prior`` not above 0.
    """
    design, counts = _cells(duels)
    prompts = len(counts)
    if prompts < 2:
        raise ValueError(f"{prompts} prompt is not enough for an interval: give at least 2")
    drawn = np.random.default_rng(rng).multinomial(prompts, [1 / prompts] * prompts, size=resamples)
    resampled = np.einsum("rp,pcj->rcj", drawn, counts)
    both = [_fit(design, c, prior)[:, : duels.models] for c in (counts.sum(0, keepdims=True), resampled)]
    (gain,), gains = (x - x[:, base, None] for x in both)
    (rank,), ranks = _ranks(gain[None]), _ranks(gains)
    tails = (ALPHA / 2, 1 - ALPHA / 2)
    low, high = np.quantile(gains, tails, axis=0)
    best, worst = np.quantile(ranks, tails, axis=0, method="inverted_cdf")
    return [
        Standing(
            gain=Interval(value=float(gain[i]), low=float(low[i]), high=float(high[i])),
            rank=int(rank[i]), rank_low=int(best[i]), rank_high=int(worst[i]),
        )
        for i in range(duels.models)
    ]  # fmt: skip


def _ranks(strengths: Floats) -> Integers:
    """(R, K) ranks of (R, K) strengths, 1 for the largest."""
    ranks: Integers = (strengths[:, None, :] > strengths[:, :, None]).sum(2) + 1
    return ranks


def _cells(duels: Duels) -> tuple[Floats, Floats]:
    """Design (C, 3, K + 2) of win, loss and tie in the C kinds of pair, and (P, C, 3) counts by prompt.

    Columns are the K log-strengths, log nu and the advantage of the left side.
    """
    kinds = np.stack([duels.first, duels.second, duels.left], 1)
    cells, cell = np.unique(kinds, axis=0, return_inverse=True)
    groups, group = np.unique(duels.group, return_inverse=True)
    counts = np.zeros((len(groups), len(cells), 3))
    column = np.select([duels.outcome == 1, duels.outcome == 0], [0, 1], 2)
    np.add.at(counts, (group, cell.reshape(-1), column), 1.0)
    design = np.zeros((len(cells), 3, duels.models + 2))
    rows = np.arange(len(cells))
    design[rows, 0, cells[:, 0]] = 0.5
    design[rows, 0, cells[:, 1]] = -0.5
    design[rows, 0, -1] = 0.5 * cells[:, 2]
    design[:, 1] = -design[:, 0]
    design[:, 2, -2] = 1.0
    return design, counts


def _fit(design: Floats, counts: Floats, prior: float) -> Floats:
    """(R, M) parameters of largest posterior, for R tables of (R, C, 3) counts, by Newton."""
    if not prior > 0:
        raise ValueError(f"prior is {prior}: it must be above 0, or a model that never lost has no strength")
    ties = bool(counts[..., 2].any())
    n = counts.sum(2)  # (R, C)
    x = np.zeros((len(counts), design.shape[2]))
    for _ in range(_STEPS):
        score = np.einsum("cjm,rm->rcj", design, x)
        if not ties:
            score[..., 2] = -np.inf  # nu is 0
        p = np.exp(score - score.max(2, keepdims=True))
        p /= p.sum(2, keepdims=True)
        mean = np.einsum("rcj,cjm->rcm", p, design)
        slope = np.einsum("rcj,cjm->rm", counts - n[..., None] * p, design) - prior * x
        second = np.einsum("rc,rcj,cjm,cjl->rml", n, p, design, design, optimize=True)
        second -= np.einsum("rc,rcm,rcl->rml", n, mean, mean, optimize=True)
        step = np.linalg.solve(second + prior * np.eye(x.shape[1]), slope[..., None])[..., 0]
        # Far from the top the curvature is almost flat and a full step would leap over it.
        x += step / np.maximum(1.0, np.abs(step).max(1, keepdims=True))
        if np.abs(step).max() < 1e-9:
            return x
    raise ArithmeticError("Bradley-Terry did not settle in 200 steps: report the counts as a bug")
