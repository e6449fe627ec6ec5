"""``votes summary``: win rates with intervals that resample prompts and raters, agreement, Bradley-Terry."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from diffalign.evaluate.agreement import krippendorff
from diffalign.evaluate.bradley_terry import Duels, Standing, make_duels, standings
from diffalign.evaluate.crossed import RESAMPLES, crossed_interval
from diffalign.evaluate.stats import Interval, widened
from diffalign.votes.check import RaterCheck, check, finite
from diffalign.votes.count import Counted, counted, pair_of, refuse_none, verdict
from diffalign.votes.rows import Vote, VoteError


@dataclass(frozen=True, kw_only=True)
class Duel:
    """What the votes say of one model against another."""

    model: str
    base: str
    rate: Interval
    """Share of votes that the model wins, ties and both-bad counting half."""
    wins: int
    ties: int
    both_bad: int
    losses: int
    prompts: int
    raters: int
    """How many were resampled, crossed with the prompts where there are several."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far raters agree on the pairs that several of them saw."""

    pairs: int
    percent: float
    """Share of pairs of raters with the same answer; NaN where no pair was seen twice."""
    alpha: float
    """Krippendorff's, of unordered answers (model, tie, both bad); NaN where nothing can be said."""


@dataclass(frozen=True, kw_only=True)
class AspectSummary:
    """One aspect."""

    aspect: str
    votes: int
    duels: tuple[Duel, ...]
    agreement: Agreement
    by_rater: dict[str, tuple[Duel, ...]]
    models: tuple[str, ...]
    """The base first."""
    standings: tuple[Standing, ...]
    """Bradley-Terry strengths against the base, by model; empty below three models or two prompts."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """All aspects, and which votes were counted."""

    counted: Counted
    raters: tuple[RaterCheck, ...]
    aspects: tuple[AspectSummary, ...]

    def as_json(self) -> dict[str, Any]:
        """Everything but the votes themselves, for a file."""
        found = asdict(self)
        found["counted"]["votes"] = len(self.counted.votes)
        clean: dict[str, Any] = finite(found)
        return clean


def summarise(
    votes: Sequence[Vote], base: str | None = None, *, rng: int = 0, resamples: int = RESAMPLES
) -> Summary:
    """Sum up votes.

    Args:
        votes: as read; those that do not count are left out here.
        base: model that the others are compared with; None takes the one that most pairs have.
        rng: seed of the resampling.
        resamples: bootstrap samples.

    Raises:
        VoteError: no votes, none that counts, or no vote on ``base``.
    """
    refuse_none(votes)
    found = counted(votes)
    if not found.votes:
        raise VoteError(
            f"none of {len(votes)} votes counts: {found.skips} are skips, {found.anchors} anchors, and "
            f"{sum(found.left_out.values())} of raters who failed them"
        )
    chosen = base or common_model(found.votes)
    if not any(chosen in (v.a.model, v.b.model) for v in found.votes):
        raise VoteError(
            f"no vote is on a model called {chosen!r}; there are {', '.join(models_in(found.votes))}"
        )
    aspects = dict.fromkeys(v.aspect for v in found.votes)
    return Summary(
        counted=found,
        raters=check(votes).raters,
        aspects=tuple(_aspect(a, found.votes, chosen, rng, resamples) for a in aspects),
    )


def models_in(votes: Iterable[Vote]) -> list[str]:
    """Models that were voted on, sorted by name."""
    return sorted({side.model for v in votes for side in (v.a, v.b)})


def common_model(votes: Sequence[Vote]) -> str:
    """The model that most votes show; of several the one called base, else the first by name."""
    shown = Counter(side.model for v in votes for side in (v.a, v.b))
    return max(sorted(shown), key=lambda m: (shown[m], m == "base"))


def outcome(vote: Vote, model: str) -> float:
    """1 where ``model`` won, 0 where it lost, 0.5 for a tie or both bad."""
    if vote.choice in ("tie", "both_bad"):
        return 0.5
    return float((vote.a if vote.choice == "a" else vote.b).model == model)


def agreement(votes: Sequence[Vote]) -> Agreement:
    """Agreement of raters on the same pair, by percent and by Krippendorff's alpha."""
    items: dict[object, dict[str, str]] = defaultdict(dict)
    for v in votes:
        items[pair_of(v)][v.rater] = _answer(v)
    several = [given for given in items.values() if len(given) > 1]
    same = [a == b for given in several for a, b in itertools.combinations(given.values(), 2)]
    raters = sorted({v.rater for v in votes})
    codes = {a: i for i, a in enumerate(sorted({a for given in several for a in given.values()}))}
    table = [[codes[g[r]] if r in g else math.nan for g in several] for r in raters]
    return Agreement(
        pairs=len(several),
        percent=float(np.mean(same)) if same else math.nan,
        alpha=krippendorff(table) if several else math.nan,
    )


def _answer(vote: Vote) -> str:
    return verdict(vote).split("\t")[0]


def _aspect(aspect: str, votes: Sequence[Vote], base: str, rng: int, resamples: int) -> AspectSummary:
    given = [v for v in votes if v.aspect == aspect]
    raters = dict.fromkeys(v.rater for v in given)
    models = (base, *(m for m in models_in(given) if m != base))
    return AspectSummary(
        aspect=aspect,
        votes=len(given),
        duels=_duels(given, models, rng, resamples),
        agreement=agreement(given),
        by_rater={r: _duels([v for v in given if v.rater == r], models, rng, resamples) for r in raters},
        models=models,
        standings=_standings(given, models, rng),
    )


def _duels(votes: Sequence[Vote], models: Sequence[str], rng: int, resamples: int) -> tuple[Duel, ...]:
    """One for each two models that meet, the base (or the one before it in ``models``) as base."""
    found = []
    for base, model in itertools.combinations(models, 2):
        met = [v for v in votes if {v.a.model, v.b.model} == {base, model}]
        if met:
            found.append(_duel(met, model, base, rng, resamples))
    return tuple(found)


def _duel(votes: Sequence[Vote], model: str, base: str, rng: int, resamples: int) -> Duel:
    won = np.array([outcome(v, model) for v in votes])
    prompts, raters = [v.prompt_id for v in votes], [v.rater for v in votes]
    bad = sum(v.choice == "both_bad" for v in votes)
    return Duel(
        model=model,
        base=base,
        rate=widened(crossed_interval(won, prompts, raters, rng=rng, resamples=resamples), len(set(prompts))),
        wins=int((won == 1).sum()),
        ties=int((won == 0.5).sum()) - bad,
        both_bad=bad,
        losses=int((won == 0).sum()),
        prompts=len(set(prompts)),
        raters=len(set(raters)),
    )


def _standings(votes: Sequence[Vote], models: Sequence[str], rng: int) -> tuple[Standing, ...]:
    """Bradley-Terry with ties, where it says more than win rates do."""
    if len(models) < 3 or len({v.prompt_id for v in votes}) < 2:
        return ()
    return tuple(standings(duels_of(votes, models), rng=rng))


def duels_of(votes: Sequence[Vote], models: Sequence[str]) -> Duels:
    """Votes in the form that standings are made of; both bad counts as a tie, for ranking only."""
    prompts = {p: i for i, p in enumerate(dict.fromkeys(v.prompt_id for v in votes))}
    number = {m: i for i, m in enumerate(models)}
    return make_duels(
        len(models),
        [number[v.a.model] for v in votes],
        [number[v.b.model] for v in votes],
        [outcome(v, v.a.model) for v in votes],
        [prompts[v.prompt_id] for v in votes],
        [1 if v.left == "a" else -1 for v in votes],
    )
