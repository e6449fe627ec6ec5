"""Whether a model serves single people: every figure is a mean over people, and intervals resample people.

Pictures of one person are judged alike, so that people, not pictures, are the units (a cluster bootstrap).
A win is a gain above 0.25 s.d. of the base's own seed-to-seed spread by that judge, as everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from diffalign.evaluate.stats import Floats, Interval, base_sd, bootstrap, widened

TIE_MARGIN_SD = 0.25


@dataclass(frozen=True, kw_only=True)
class PersonalRate(Interval):
    """Mean over people of each one's win rate, ties counting half, with its interval over people."""

    people: int
    by_person: Mapping[str, float]
    worst: str
    """Who is served worst."""
    below_half: float
    """Share of people who lose more than they win."""

    @property
    def worst_rate(self) -> float:
        """Win rate of the person who is served worst."""
        return self.by_person[self.worst]


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """How each judge scores the pictures that were made for each person; people and judges in one order."""

    names: tuple[str, ...]
    table: Floats
    """(A, A) row: for whom the pictures were made; column: whose judge. In s.d. of the judge over all
    pictures, 0 the judge's mean."""
    margin: Interval
    """Own pictures less the mean of others', by the same judge, mean over judges with its interval."""
    top1: Interval
    """Share of judges who like the pictures made for their own person best; 1 / A by chance."""
    top5: Interval
    """Share of judges with their own among the five best."""
    ranks: Mapping[str, int]
    """Rank of the own pictures for each judge, 1 the best."""


def outcomes(
    ours: ArrayLike, theirs: ArrayLike, sd: float, *, tie_margin_sd: float = TIE_MARGIN_SD
) -> Floats:
    """Outcomes 1, 0.5 and 0 of paired scores of any one shape, with a tie margin in ``sd``.

    Raises:
        ValueError: shapes differ, scores that are not finite, or ``sd`` not above 0.
    """
    a, b = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)
    if a.shape != b.shape or not a.size:
        raise ValueError(f"scores have shapes {a.shape} and {b.shape}: the same prompts and seeds are needed")
    if not (np.isfinite(a).all() and np.isfinite(b).all()) or not (np.isfinite(sd) and sd > 0):
        raise ValueError(f"scores must be finite and sd ({sd}) above 0: look at the judge")
    gain, margin = a - b, tie_margin_sd * sd
    out: Floats = 0.5 + 0.5 * ((gain > margin).astype(float) - (gain < -margin))
    return out


def personal_rate(
    won: Mapping[str, ArrayLike], *, rng: np.random.Generator | int = 0, resamples: int = 2000
) -> PersonalRate:
    """Win rate of people, each counting alike however many pictures they judged.

    Args:
        won: outcomes of each person, any shape, in [0, 1].
        rng: generator of the resampling, or its seed.
        resamples: bootstrap samples of people.

    Raises:
        ValueError: fewer than two people, somebody without outcomes, or outcomes outside [0, 1].
    """
    arrays = {name: np.asarray(values, dtype=float) for name, values in won.items()}
    if len(arrays) < 2:
        raise ValueError(f"an interval over people needs two of them at least, got {len(arrays)}")
    wrong = [n for n, a in arrays.items() if not a.size or not ((a >= 0) & (a <= 1)).all()]
    if wrong:
        raise ValueError(f"outcomes of {wrong[0]!r} must be at least one, in [0, 1]")
    means = {name: float(a.mean()) for name, a in arrays.items()}
    column = np.array(list(means.values()))[:, None]
    found = widened(bootstrap(column, rng=rng, resamples=resamples)[0], len(column))
    return PersonalRate(
        value=found.value, low=found.low, high=found.high, people=len(means), by_person=means,
        worst=min(means, key=means.__getitem__), below_half=float((column < 0.5).mean()),
    )  # fmt: skip


def compare_people(
    ours: Mapping[str, ArrayLike],
    theirs: Mapping[str, ArrayLike],
    sd: Mapping[str, float],
    *,
    tie_margin_sd: float = TIE_MARGIN_SD,
    rng: np.random.Generator | int = 0,
    resamples: int = 2000,
) -> PersonalRate:
    """Win rate of one kind of pictures over another, each person by a judge of their own.

    Against the base, against the population's model, or own against swapped: then ``theirs`` are the scores
    that the person's judge gives to pictures made for another person.

    Args:
        ours: scores of each person's pictures by that person's judge.
        theirs: scores of the others by the same judge, same prompts and seeds.
        sd: unit of each judge's tie margin, as a rule ``judge_sd`` of the base's scores.
        tie_margin_sd: gains of at most so many sd are ties.
        rng: see ``personal_rate``.
        resamples: see ``personal_rate``.

    Raises:
        ValueError: different people on the sides, or see ``outcomes`` and ``personal_rate``.
    """
    if not ours.keys() == theirs.keys() == sd.keys():
        odd = sorted((ours.keys() | theirs.keys() | sd.keys()) - (ours.keys() & theirs.keys() & sd.keys()))
        raise ValueError(
            f"{len(odd)} people are not on all sides ({', '.join(odd[:3])}): give the same people"
        )
    won = {name: outcomes(ours[name], theirs[name], sd[name], tie_margin_sd=tie_margin_sd) for name in ours}
    return personal_rate(won, rng=rng, resamples=resamples)


def judge_sd(base: Mapping[str, ArrayLike]) -> dict[str, float]:
    """Seed-to-seed s.d. within a prompt of each judge's scores (P, S) of the base's pictures."""
    return {name: base_sd(scores) for name, scores in base.items()}


def seen_unseen(
    won: Mapping[str, ArrayLike], seen: Sequence[str], *, rng: int = 0, resamples: int = 2000
) -> dict[str, PersonalRate]:
    """Rates of people who were trained on, and of the others, where there are two at least of a kind."""
    known = set(seen)
    parts = {
        "seen": {n: v for n, v in won.items() if n in known},
        "unseen": {n: v for n, v in won.items() if n not in known},
    }
    return {
        kind: personal_rate(some, rng=rng, resamples=resamples)
        for kind, some in parts.items()
        if len(some) > 1
    }


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A figure by the number of votes that a person was known from."""

    votes: tuple[int, ...]
    """k, ascending."""
    rates: tuple[PersonalRate, ...]
    gain: Interval
    """Rate at the most votes less that at the fewest, paired by person."""

    @property
    def rises(self) -> bool:
        """Whether more votes help beyond doubt: the interval of the gain is above 0."""
        return self.gain.low > 0


def vote_curve(won: Mapping[int, Mapping[str, ArrayLike]], *, rng: int = 0, resamples: int = 2000) -> Curve:
    """Rates by the number k of support votes; outcomes of several draws of votes simply stand together.

    Raises:
        ValueError: fewer than two k, or other people at another k.
    """
    votes = tuple(sorted(won))
    if len(votes) < 2 or any(won[k].keys() != won[votes[0]].keys() for k in votes):
        raise ValueError("a curve needs two numbers of votes at least, and the same people at each")
    rates = tuple(personal_rate(won[k], rng=rng, resamples=resamples) for k in votes)
    first, last = rates[0].by_person, rates[-1].by_person
    gains = np.array([[last[name] - first[name]] for name in first])
    return Curve(votes=votes, rates=rates, gain=bootstrap(gains, rng=rng, resamples=resamples)[0])


def confusion(scores: ArrayLike, names: Sequence[str], *, rng: int = 0, resamples: int = 2000) -> Confusion:
    """Confusion matrix of people, and what of it says that pictures are specific.

    Args:
        scores: (A, A, N) score of picture n made for person a (first axis) by the judge of person b (second);
            the same prompts and seeds for all people.
        names: of the A people.
        rng: seed of the resampling of judges.
        resamples: bootstrap samples.

    Raises:
        ValueError: another shape, fewer than two people, or a judge who scores all pictures alike.
    """
    s = np.asarray(scores, dtype=float)
    count = len(names)
    if s.ndim != 3 or s.shape[:2] != (count, count) or count < 2 or not s.shape[2]:
        raise ValueError(
            f"scores are {s.shape}; they must be ({count}, {count}, pictures), with two people at least"
        )
    spread = s.std(axis=(0, 2))
    if not np.isfinite(s).all() or (spread <= 1e-12 * np.abs(s).max(initial=1.0)).any():
        who = names[int(np.argmin(np.where(np.isfinite(spread), spread, -1.0)))]
        raise ValueError(
            f"the judge of {who} scores all pictures alike, or some not at all: look at that judge"
        )
    table = (s.mean(2) - s.mean(axis=(0, 2))) / spread  # (A, A), columns comparable
    own = np.diag(table)
    others = (table.sum(0) - own) / (count - 1)
    better, equal = (table > own).sum(0), (table == own).sum(0) - 1
    top1 = ((better < 1) / (1 + equal)).astype(float)  # of equal bests each counts its share
    top5 = (better < 5).astype(float)
    found = bootstrap(np.stack([own - others, top1, top5], 1), rng=rng, resamples=resamples)
    return Confusion(
        names=tuple(names), table=table, margin=found[0], top1=widened(found[1], count),
        top5=widened(found[2], count), ranks={n: int(b) + 1 for n, b in zip(names, better, strict=True)},
    )  # fmt: skip


def swapped(names: Sequence[str], groups: Mapping[str, int] | None = None) -> dict[str, str]:
    """For each person another one to swap with: the next of another group, going round.

    Args:
        names: people.
        groups: taste of each, where known: two of one taste make no control.

    Raises:
        ValueError: there is nobody to swap with.
    """
    found = {}
    for i, name in enumerate(names):
        others = [*names[i + 1 :], *names[:i]]
        fitting = [o for o in others if groups is None or groups[o] != groups[name]]
        if not fitting:
            raise ValueError(f"{name!r} has nobody of another taste to swap with: give more people")
        found[name] = fitting[0]
    return found
