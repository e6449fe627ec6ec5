"""Which comparisons are trained on and how strongly: filters, labels and margins from scores."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from diffalign.data.gaps import SCORE_FIRST, gaps, judged, only_pairs, oriented, standardised
from diffalign.data.posterior import flip_posterior
from diffalign.data.records import DataError, Record
from diffalign.data.strength import StrengthOptions, strength, valued

logger = logging.getLogger(__name__)

Step = Callable[[Sequence[Record]], list[Record]]


@dataclass(frozen=True, kw_only=True)
class SelectOptions:
    """What becomes of records before they are cached; names are those in the records' ``judged``."""

    agree: tuple[str, ...] = ()
    """Keep a pair only where each of these scorers puts the winner above the loser; ties go."""
    least: Mapping[str, float] = field(default_factory=dict)
    """Least score gap, winner minus loser, by scorer, at which a pair is kept (MPCF); ties go unless tie_most
    keeps them. Published: 0 each; aesthetic -0.5, the others 0; aesthetic -1, the others 0."""
    tie_most: Mapping[str, float] = field(default_factory=dict)
    """Largest absolute score gap, by scorer, at which a tie is kept (MPCF); other ties go. Published:
    aesthetic 0.2, CLIP 0.03, VQAScore 0.07."""
    min_distance: float = 0.0
    """Leave out pairs whose images are nearer than this in feature space."""
    posterior: tuple[str, ...] = ()
    """Make labels probabilities, from these scorers' calibrated opinion and an estimated flip rate (EM)."""
    strength: StrengthOptions | None = None
    """Drop, soften, flip, or give a margin by what several scorers say; null does not."""
    soft: str | None = None
    """Name of the pairs' soft probabilities, smpo after diffalign score --write; null leaves the records'."""
    score: str | None = None
    """Name of the label scores: phi, calibrated, or a scorer; a ranking is ranked by it."""
    margin: str | None = None
    """Name of the scores whose gap, winner minus loser, is the margin asked of a pair."""
    margin_scale: float = 1.0
    """Factor on the margin."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.min_distance >= 0:
            raise DataError(f"select.min_distance is {self.min_distance}; it must be 0 or more")
        self._check_gaps()
        if not np.isfinite(self.margin_scale):
            raise DataError(f"select.margin_scale is {self.margin_scale}; it must be a finite number")

    def _check_gaps(self) -> None:
        """Refuse gaps that no pair or tie can have, and ties that are kept after they went."""
        for name, gap in self.least.items():
            if not np.isfinite(gap):
                raise DataError(f"select.least.{name} is {gap}; it must be a finite number")
        for name, gap in self.tie_most.items():
            if not 0 <= gap < np.inf:
                raise DataError(f"select.tie_most.{name} is {gap}; it must be 0 or more")
        if self.agree and self.tie_most:
            raise DataError("select.agree leaves no ties for select.tie_most to keep: give least instead")


def select(records: Sequence[Record], options: SelectOptions) -> tuple[list[Record], list[str]]:
    """Apply the options in the order of their list.

    Returns:
        The records left, as they are to be trained on, and a line for the log of each option that is used.

    Raises:
        DataError: scores or distances that the records lack, an option for pairs on other records, or nothing
            left.
    """
    out, lines = list(records), []
    for name, step in _steps(options):
        before, out = len(out), step(out)
        lines.append(f"{name}: {len(out)} of {before} comparisons kept")
        if not out:
            raise DataError(f"data.select leaves no comparison ({'; '.join(lines)}); ask for less")
    return out, lines


def _steps(options: SelectOptions) -> Iterator[tuple[str, Step]]:
    """Name and function of each option that is used."""
    if options.agree:
        yield f"agree {', '.join(options.agree)}", partial(agree, scorers=options.agree)
    if options.least or options.tie_most:
        bounds = [f"{k} {v:g}" for part in (options.least, options.tie_most) for k, v in part.items()]
        yield (
            f"least, tie_most {', '.join(bounds)}",
            partial(supported, least=options.least, tie_most=options.tie_most),
        )
    if options.min_distance > 0:
        yield f"min_distance {options.min_distance:g}", partial(apart, least=options.min_distance)
    if options.posterior:
        yield "posterior", partial(posterior, scorers=options.posterior)
    if options.strength is not None:
        yield "strength", partial(strength, options=options.strength)
    if options.soft is not None:
        yield f"soft {options.soft}", partial(with_soft, name=options.soft)
    if options.score is not None:
        yield f"score {options.score}", partial(with_score, name=options.score)
    if options.margin is not None:
        yield (
            f"margin {options.margin}",
            partial(with_margin, name=options.margin, scale=options.margin_scale),
        )


# ---------------------------------------------------------------------- filters


def agree(records: Sequence[Record], scorers: Sequence[str]) -> list[Record]:
    """Keep pairs whose winner every scorer puts above the loser; ties go, as they have no winner."""
    g = oriented(records, scorers)  # (n, K)
    return [r for r, row in zip(records, g, strict=True) if not r.undecided and (row > 0).all()]


def supported(
    records: Sequence[Record], least: Mapping[str, float], tie_most: Mapping[str, float]
) -> list[Record]:
    """Keep pairs that no scorer contradicts by much, and ties that all confirm (MPCF, arXiv:2502.01051).

    Args:
        records: pairs and ties with the scorers' scores.
        least: see SelectOptions; empty keeps all pairs.
        tie_most: see SelectOptions; empty keeps no ties.
    """
    of_pair, of_tie = oriented(records, list(least)), oriented(records, list(tie_most))  # (n, K) each
    pair_kept = (of_pair >= np.array(list(least.values()))).all(1)
    tie_kept = (np.abs(of_tie) <= np.array(list(tie_most.values()))).all(1) & bool(tie_most)
    kept = np.where([r.undecided for r in records], tie_kept, pair_kept)
    return [r for r, keep in zip(records, kept, strict=True) if keep]


def apart(records: Sequence[Record], least: float) -> list[Record]:
    """Keep pairs whose images are at least ``least`` apart in feature space."""
    only_pairs(records, "min_distance")
    lacking = next((r for r in records if r.distance is None), None)
    if lacking is not None:
        raise DataError(f"{lacking.source or 'record'}: there is no feature distance; {SCORE_FIRST}")
    return [r for r in records if r.distance is not None and r.distance >= least]


# ---------------------------------------------------------------------- labels


def posterior(records: Sequence[Record], scorers: Sequence[str]) -> list[Record]:
    """Pairs with the chance that their label is true as their label; ties stay. See ``flip_posterior``."""
    decided = [r for r in records if not r.undecided]
    g = standardised(gaps(decided, scorers))  # (n, K), first minus second image
    p, rate = flip_posterior(g, np.array([r.values[0] for r in decided]))
    logger.info("posterior: %.1f %% of %d labels are thought to be flipped", 100 * rate, len(decided))
    new = iter(p.tolist())
    return [r if r.undecided else valued(r, next(new)) for r in records]


def with_soft(records: Sequence[Record], name: str) -> list[Record]:
    """Pairs with the probabilities called ``name`` as their soft labels."""
    only_pairs(records, "soft")
    rows = [judged(r, name) for r in records]
    return [replace(r, soft=(row[0], row[1])) for r, row in zip(records, rows, strict=True)]


def with_score(records: Sequence[Record], name: str) -> list[Record]:
    """Records with the scores called ``name`` as label scores; rankings are ranked by them."""
    return [
        replace(r, values=judged(r, name)) if r.kind == "ranking" else replace(r, score=judged(r, name))
        for r in records
    ]


def with_margin(records: Sequence[Record], name: str, scale: float = 1.0) -> list[Record]:
    """Pairs with ``scale`` times the score gap, winner minus loser, as margin (MODPO's other reward)."""
    g = oriented(records, [name])[:, 0].tolist()
    return [replace(r, margin=scale * gap) for r, gap in zip(records, g, strict=True)]


def check_needs(records: Sequence[Record], needs: frozenset[str]) -> None:
    """Check that records have the optional fields that an objective names: margin, score, soft.

    Raises:
        DataError: a record lacks one; says how to get it.
    """
    remedy = {
        "margin": "set data.select.margin to a scorer, or give the records a margin",
        "score": "set data.select.score to calibrated or phi",
        "soft": "soft labels are of pairs",
    }
    for record in records:
        have = {
            "margin": record.margin is not None,
            "score": record.kind == "ranking" or record.score is not None,
            "soft": record.kind == "pair",
        }
        lacking = [name for name in remedy if name in needs and not have[name]]
        if lacking:
            raise DataError(
                f"{record.source or 'record'}: the objective needs a {lacking[0]}, and the record has none: "
                f"{remedy[lacking[0]]}; {SCORE_FIRST}"
            )
