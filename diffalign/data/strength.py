"""How strongly several scorers support each label: drop, soften, flip, or ask for a margin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import erf, sqrt
from typing import Literal

from diffalign.data.gaps import oriented, standardised
from diffalign.data.records import DataError, Record

Action = Literal["flip", "drop", "soften", "margin"]


@dataclass(frozen=True, kw_only=True)
class StrengthOptions:
    """How strongly several scorers support each label, and what becomes of it.

    After Wang et al. 2024 (arXiv:2401.06080), who take mean and spread of an ensemble's score gaps. Gaps are
    in units of their root mean square over the data, positive where a scorer agrees with the label.
    """

    scorers: tuple[str, ...] = ()
    """Names of the scorers, two or more."""
    actions: tuple[Action, ...] = ("drop",)
    """In this order: flip turns clearly contradicted labels; drop leaves out weak ones; soften makes labels
    probabilities; margin asks stronger pairs for more."""
    flip_below: float = -0.5
    """flip: mean gap below which a label is turned, 0 or less."""
    drop_below: float = 0.0
    """drop: mean gap below which a pair is left out."""
    drop_spread: float | None = None
    """drop: spread of the scorers' gaps (s.d.) above which a pair is left out; null is no limit."""
    margin_scale: float = 1.0
    """margin: margin of a pair whose mean gap is 1; pairs of negative gap get 0."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if len(self.scorers) < 2:
            raise DataError(f"strength.scorers is {list(self.scorers)}; a spread needs two scorers or more")
        if not self.actions:
            raise DataError("strength.actions is empty; name flip, drop, soften or margin")
        if self.flip_below > 0:
            raise DataError(f"strength.flip_below is {self.flip_below}; it must be 0 or less")
        if self.drop_spread is not None and self.drop_spread <= 0:
            raise DataError(f"strength.drop_spread is {self.drop_spread}; it must be positive, or null")


def strength(records: Sequence[Record], options: StrengthOptions) -> list[Record]:
    """Treat labels by the mean m and spread s of the scorers' standardised gaps; ties stay as they are.

    soften: the label becomes p = Phi(m / sqrt(s^2 + 1)), the chance that a further scorer of that mean and
    spread, and with noise of one unit, agrees.
    """
    g = standardised(oriented(records, options.scorers))  # (n, K)
    m, s = g.mean(1), g.std(1)
    rows = zip(records, m.tolist(), s.tolist(), strict=True)
    treated = [r if r.undecided else _treat(r, mean, spread, options) for r, mean, spread in rows]
    return [r for r in treated if r is not None]


def _treat(record: Record, m: float, s: float, options: StrengthOptions) -> Record | None:
    """The pair after all actions; None where it is dropped."""
    for action in options.actions:
        if action == "drop" and _is_weak(m, s, options):
            return None
        if action == "flip" and m < options.flip_below:
            record, m = flipped(record), -m
        if action == "soften":
            record = softened(record, normal_cdf(m / (s**2 + 1) ** 0.5))
        if action == "margin":
            record = replace(record, margin=options.margin_scale * max(m, 0.0))
    return record


def _is_weak(m: float, s: float, options: StrengthOptions) -> bool:
    return m < options.drop_below or (options.drop_spread is not None and s > options.drop_spread)


def flipped(record: Record) -> Record:
    """The pair with its label turned."""
    p0, p1 = record.values
    return replace(record, values=(p1, p0), soft=None)


def softened(record: Record, p: float) -> Record:
    """The pair whose winner wins with probability p."""
    return valued(record, p if record.winner == 0 else 1 - p)


def valued(record: Record, p0: float) -> Record:
    """The pair whose first image wins with probability p0."""
    return replace(record, values=(p0, 1 - p0), soft=None)


def normal_cdf(x: float) -> float:
    """Phi(x)."""
    return 0.5 * (1 + erf(x / sqrt(2)))
