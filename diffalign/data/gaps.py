"""Scores of records and their gaps between winner and loser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from diffalign.data.records import DataError, Record

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

SCORE_FIRST = (
    "score the data first (diffalign score DATA --write --scorer NAME) and name its file in data.labels"
)


def judged(record: Record, name: str) -> tuple[float, ...]:
    """Scores called ``name``, one per image.

    Raises:
        DataError: there are none; lists the names there are.
    """
    if name not in record.judged:
        there = ", ".join(record.judged) or "none"
        raise DataError(
            f"{record.source or 'record'}: there are no scores called {name!r} (there are: {there}); "
            f"{SCORE_FIRST}"
        )
    return record.judged[name]


def gaps(records: Sequence[Record], names: Sequence[str]) -> Array:
    """(n, K) scores of the first image minus those of the second, of n pairs by K scorers."""
    only_pairs(records, "score gaps")
    rows = [[judged(r, name)[0] - judged(r, name)[1] for name in names] for r in records]
    return np.asarray(rows, dtype=np.float64).reshape(len(records), len(names))


def oriented(records: Sequence[Record], names: Sequence[str]) -> Array:
    """(n, K) scores of the winner minus those of the loser; of a tie the first image counts as the winner."""
    sign = np.array([1.0 if r.winner == 0 else -1.0 for r in records])
    out: Array = gaps(records, names) * sign[:, None]
    return out


def standardised(g: Array) -> Array:
    """(n, K) gaps in units of each scorer's root mean square gap.

    Raises:
        DataError: a scorer that gives both images of every pair the same score.
    """
    unit = np.sqrt((g**2).mean(0)) if len(g) else np.ones(g.shape[1])
    if (unit == 0).any():
        raise DataError("a scorer gives both images of every pair the same score; leave it out")
    out: Array = g / unit
    return out


def only_pairs(records: Sequence[Record], what: str) -> None:
    """Refuse records of another kind; ``what`` is what asks for pairs."""
    other = next((r for r in records if r.kind != "pair"), None)
    if other is not None:
        raise DataError(f"{what} is for pairs, and the data hold {other.kind} records")
