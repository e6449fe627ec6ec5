"""LPO's filter of preferences (MPCF): pairs that no scorer contradicts, ties that all confirm."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

MPCF_STRATEGIES: Mapping[int, Mapping[str, float]] = {
    1: {"aesthetic": 0.0, "clip": 0.0, "vqa": 0.0},
    2: {"aesthetic": -0.5, "clip": 0.0, "vqa": 0.0},
    3: {"aesthetic": -1.0, "clip": 0.0, "vqa": 0.0},
}
"""Least gaps, winner minus loser, of the three published strategies (arXiv:2502.01051); 2 is the one used."""
MPCF_TIES: Mapping[str, float] = {"aesthetic": 0.2, "clip": 0.03, "vqa": 0.07}
"""Largest absolute gaps of a tie that is kept."""


def supported(gaps: Mapping[str, Tensor], least: Mapping[str, float]) -> Tensor:
    """(N,) bool, pairs whose winner is nowhere further below the loser than ``least`` allows.

    Args:
        gaps: (N,) score gaps, winner minus loser, by scorer.
        least: least gap by scorer, at which a pair is still kept.

    Raises:
        ValueError: a scorer without gaps, or none at all.
    """
    kept = [gaps[name] >= bound for name, bound in _known(gaps, least).items()]
    return _all(kept)


def confirmed_ties(gaps: Mapping[str, Tensor], most: Mapping[str, float] = MPCF_TIES) -> Tensor:
    """(N,) bool, ties whose absolute gaps are at most ``most``.

    The published code compares the signed gap, which also keeps ties of large negative gaps; the paper means
    the absolute one, and so does this.

    Raises:
        ValueError: see ``supported``.
    """
    return _all([gaps[name].abs() <= bound for name, bound in _known(gaps, most).items()])


def _known(gaps: Mapping[str, Tensor], bounds: Mapping[str, float]) -> Mapping[str, float]:
    missing = [name for name in bounds if name not in gaps]
    if missing or not bounds:
        raise ValueError(
            f"no gaps of {', '.join(missing) or 'any scorer'}; there are those of {', '.join(gaps) or 'none'}"
        )
    return bounds


def _all(parts: list[Tensor]) -> Tensor:
    kept = parts[0]
    for part in parts[1:]:
        kept = kept & part
    return kept
