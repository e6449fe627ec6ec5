"""In which order the units of an epoch come: shuffled, easiest first, or with a fixed share of likes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from diffalign.data.records import DataError

Order = tuple[NDArray[np.int64], NDArray[np.int64]]
"""(n,) positions of units, and (n,) how often each was drawn before in this epoch."""


def shuffled(n: int, rng: np.random.Generator) -> Order:
    """Every unit once."""
    return rng.permutation(n), np.zeros(n, dtype=np.int64)


def easiest_first(gaps: Sequence[float], stages: int, rng: np.random.Generator) -> Order:
    """Every unit once, in ``stages`` equal parts of falling score gap, shuffled within each.

    The idea of Curry-DPO (Pattnaik et al. 2024, arXiv:2403.07230), whose stages are pairs of falling gap.

    Args:
        gaps: (n,) how clear each comparison is; larger is easier.
        stages: number of parts, 1 or more; with n parts the order is that of the gaps.
        rng: of the order within a part.
    """
    mixed = rng.permutation(len(gaps))  # so that equal gaps come in random order
    ranked = mixed[np.argsort(-np.asarray(gaps)[mixed], kind="stable")]
    parts = [rng.permutation(part) for part in np.array_split(ranked, min(stages, len(gaps)))]
    return np.concatenate(parts), np.zeros(len(gaps), dtype=np.int64)


def class_balanced(liked: Sequence[bool], share: float, n: int, rng: np.random.Generator) -> Order:
    """n draws, each a like with probability ``share`` (Diffusion-KTO's gamma, .8 there), else a dislike.

    Within a class every unit comes once before one comes again.

    Raises:
        DataError: a class that is to be drawn from is empty.
    """
    flags = np.asarray(liked, dtype=bool)
    pools = {True: np.flatnonzero(flags), False: np.flatnonzero(~flags)}
    for name, wanted, pool in (("like", share > 0, pools[True]), ("dislike", share < 1, pools[False])):
        if wanted and not len(pool):
            raise DataError(
                f"liked_share is {share:g}, but there is no {name} among {len(flags)} images; "
                "leave liked_share out, or give both kinds"
            )
    draws = rng.random(n) < share
    order, repeats = np.empty(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    for kind, pool in pools.items():
        count = int((draws == kind).sum())
        if count:
            rounds = -(-count // len(pool))
            order[draws == kind] = np.concatenate([rng.permutation(pool) for _ in range(rounds)])[:count]
            repeats[draws == kind] = np.arange(count) // len(pool)
    return order, repeats
