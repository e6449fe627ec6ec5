"""How far raters agree: Krippendorff's alpha."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from diffalign.evaluate.stats import Floats

Level = Literal["nominal", "ordinal", "interval"]


def krippendorff(ratings: ArrayLike, level: Level = "nominal") -> float:
    """Return Krippendorff's alpha: 1 for full agreement, 0 for that of chance, below 0 for disagreement.

    alpha = 1 - observed / expected disagreement, over all pairs of ratings of the same item; items that
    fewer than two raters rated do not count (Krippendorff 2011, "Computing alpha-reliability").

    Args:
        ratings: (R, U) ratings of U items by R raters, NaN where a rater has not rated.
        level: ``nominal`` (two ratings agree or not), ``ordinal`` (ranks between them count) or ``interval``
            (squared difference).

    Returns:
        NaN where nothing can be said: no item with two ratings, or all of those ratings alike.

    Raises:
        ValueError: the array is not two-dimensional, or ``level`` is none of the three.
    """
    table = np.asarray(ratings, dtype=float)
    if table.ndim != 2:
        raise ValueError(f"ratings have shape {table.shape}: expected (raters, items), NaN for no rating")
    values = np.unique(table[~np.isnan(table)])
    counts = (table[:, :, None] == values).sum(0).astype(float)  # (U, V)
    counts = counts[counts.sum(1) >= 2]
    share = counts / (counts.sum(1, keepdims=True) - 1)
    observed = share.T @ counts - np.diag(share.sum(0))  # (V, V) coincidences within items
    n_v = counts.sum(0)
    distance = _distance(values, n_v, level)
    expected = float((np.outer(n_v, n_v) * distance).sum())
    if expected == 0:
        return math.nan
    return 1 - float((n_v.sum() - 1) * (observed * distance).sum()) / expected


def _distance(values: Floats, n_v: Floats, level: Level) -> Floats:
    """(V, V) squared distances between the values, by level of measurement."""
    if level == "nominal":
        return 1.0 - np.eye(len(values))
    if level == "interval":
        return np.subtract.outer(values, values) ** 2
    if level != "ordinal":
        raise ValueError(f"level is {level!r}: give 'nominal', 'ordinal' or 'interval'")
    # Ratings from one value up to another, with half of both ends: differences of midranks.
    midranks = np.cumsum(n_v) - n_v / 2
    return np.subtract.outer(midranks, midranks) ** 2
