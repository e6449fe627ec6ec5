"""What scores say about the images of a prompt: soft labels, shares of wins, calibrated rewards, fronts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from diffalign.data.records import DataError
from scorers import compose

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


def smpo_probability(first: Array, second: Array, low: float, high: float) -> Array:
    """SmPO's soft label, sigmoid((r_0 - r_1) / (high - low)): (n,) chance that the first image wins.

    arXiv:2506.02698; low and high are the smallest and largest score of the data set, so a p is between
    0.269 and 0.731.

    Raises:
        DataError: all scores are equal, or one is outside [low, high].
    """
    if not low < high:
        raise DataError(
            f"SmPO's range of scores is [{low:g}, {high:g}]; all scores are equal: take another scorer"
        )
    both = np.concatenate([np.ravel(first), np.ravel(second)])
    if both.size and not (both.min() >= low and both.max() <= high):
        raise DataError(
            f"a score is outside SmPO's range [{low:g}, {high:g}] (there are {both.min():g} to "
            f"{both.max():g}); give the range of the whole data set"
        )
    return _sigmoid((first - second) / (high - low))


def win_fraction(scores: Array) -> Array:
    """RankDPO's phi: (n,) share of the comparisons that each image wins, over the others and the scorers.

    arXiv:2410.18013, algorithm 1; an equal score is half a win.

    Args:
        scores: (K, n) of K scorers for n images of one prompt.

    Raises:
        DataError: fewer than two images.
    """
    d = _differences(scores)  # (K, n, n)
    wins = (d > 0) + 0.5 * (d == 0)
    return _mean_over_others(wins)


def calibrated_reward(scores: Array, unit: Array) -> Array:
    """CaPO's calibrated reward: (n,) mean chance to win against the other images, over the scorers.

    arXiv:2502.02588; a chance is sigmoid((r_i - r_j) / unit) (Bradley-Terry).

    Args:
        scores: (K, n) of K scorers for n images of one prompt.
        unit: (K,) score difference that makes odds of e.

    Raises:
        DataError: fewer than two images.
    """
    return _mean_over_others(_sigmoid(_differences(scores) / unit[:, None, None]))


def pareto_fronts(scores: Array) -> NDArray[np.int64]:
    """(n,) number of each image's Pareto front: 1 where none is better by every scorer, 2 without those, ...

    Args:
        scores: (K, n). One image is better than another where no scorer puts it lower and one puts it higher.
    """
    fronts: NDArray[np.int64] = compose.pareto_fronts(torch.from_numpy(np.ascontiguousarray(scores))).numpy()
    return fronts


def within_sd(groups: Sequence[Array], names: Sequence[str]) -> Array:
    """(K,) s.d. of each scorer's scores between the images of a prompt, over all prompts.

    Args:
        groups: (K, n) scores of each prompt, n may differ.
        names: K names of the scorers.

    Raises:
        DataError: a scorer that gives all images of each prompt the same score.
    """
    centred = np.concatenate([g - g.mean(1, keepdims=True) for g in groups], 1)
    freedom = sum(g.shape[1] - 1 for g in groups)
    if freedom < 1:
        raise DataError("no prompt has two images or more, so there is nothing to compare")
    sd: Array = np.sqrt((centred**2).sum(1) / freedom)
    flat = sd <= 1e-12 * np.abs(np.concatenate(groups, 1)).max(1)
    if flat.any():
        name = names[int(flat.argmax())]
        raise DataError(f"scorer {name} gives all images of every prompt the same score; leave it out")
    return sd


def _differences(scores: Array) -> Array:
    if scores.shape[1] < 2:
        raise DataError("a ranking of one item: there must be two images or more of a prompt")
    return scores[:, :, None] - scores[:, None, :]


def _mean_over_others(x: Array) -> Array:
    """(K, n, n) comparisons of row with column to (n,) means without the diagonal."""
    n = x.shape[1]
    total = x.sum((0, 2)) - x[:, np.arange(n), np.arange(n)].sum(0)
    mean: Array = total / (len(x) * (n - 1))
    return mean


def _sigmoid(x: Array) -> Array:
    out: Array = 0.5 * (1 + np.tanh(x / 2))
    return out
