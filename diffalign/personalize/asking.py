"""Which pair of a folder of results to show somebody new, after the votes so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffalign.evaluate.stats import Floats
from diffalign.personalize.ask import Belief, learn, of_people, rank, vague
from diffalign.votes.choose import Candidate, candidates
from diffalign.votes.count import counted
from diffalign.votes.features import MEASURES, Voted
from diffalign.votes.next_pair import place_of
from diffalign.votes.pictures import Pictures
from diffalign.votes.rows import Vote, VoteError

ASPECT = "overall"
FEATURES = ("image", "scores")
LEAST = 5
"""Votes of another person from which that person says what people are like."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A pair to show."""

    pair: Candidate
    information: float
    """Expected information of the answer on the person's taste, in nats, 0 to log 2."""
    answered: int
    """Votes of the person that the choice rests on."""
    others: int
    """People whose votes say what people are like; 0 where too few are there."""


def ask(
    votes: Sequence[Vote],
    pictures: Pictures,
    rater: str,
    *,
    features: Sequence[str] = FEATURES,
    seed: int = 0,
) -> Question:
    """The pair whose answer tells most about a person.

    Args:
        votes: of anybody; the person's own say what is known, others' what people are like.
        pictures: folders of results to ask about.
        rater: the person.
        features: kinds, see ``votes.features.MEASURES``: what tastes are taken to be about.
        seed: of the sampling.

    Raises:
        VoteError: no such features or none that differ, or nothing left to ask.
    """
    pairs = candidates(pictures.rows)
    if not pairs:
        raise VoteError(
            "there are no two models with different pictures of the same prompt and seed to ask about"
        )
    x = _differences(pairs, pictures, features)
    place = {place_of(c.prompt_id, c.seed, c.a.model, c.b.model): i for i, c in enumerate(pairs)}
    known = [
        v
        for v in counted(votes).votes
        if v.aspect == ASPECT and v.choice != "both_bad" and _place(v) in place
    ]
    own = _data([v for v in known if v.rater == rater], pairs, place, x)
    people = [[v for v in known if v.rater == other] for other in dict.fromkeys(v.rater for v in known)]
    others = [
        _data(some, pairs, place, x) for some in people if some[0].rater != rater and len(some) >= LEAST
    ]
    belief = learn(of_people(others) or vague(x.shape[1]), *own)
    return _best(
        belief, x, pairs, {place[_place(v)] for v in known if v.rater == rater}, len(own[1]), others, seed
    )


def _best(
    belief: Belief,
    x: Floats,
    pairs: Sequence[Candidate],
    asked: set[int],
    answered: int,
    others: Sequence[tuple[Floats, Floats]],
    seed: int,
) -> Question:
    value, order = rank(belief, x, rng=seed)
    left = [i for i in order if i not in asked]
    if not left:
        raise VoteError(f"all {len(pairs)} pairs were asked: generate more pictures")
    informed = 0 if of_people(others) is None else len(others)
    return Question(
        pair=pairs[left[0]], information=float(value[left[0]]), answered=answered, others=informed
    )


def _place(vote: Vote) -> tuple[str, int, str, str]:
    return place_of(vote.prompt_id, vote.seed, vote.a.model, vote.b.model)


def _data(
    votes: Sequence[Vote], pairs: Sequence[Candidate], place: dict[tuple[str, int, str, str], int], x: Floats
) -> tuple[Floats, Floats]:
    """(V, F) differences of the sides as the pair has them, and (V,) outcomes for its first side."""
    at = [place[_place(v)] for v in votes]
    same = np.array([v.a.model == pairs[i].a.model for v, i in zip(votes, at, strict=True)], dtype=bool)
    y = np.array([{"a": 1.0, "b": 0.0}.get(v.choice, 0.5) for v in votes])
    return x[at], np.where(same, y, 1 - y) if len(y) else y


def _differences(pairs: Sequence[Candidate], pictures: Pictures, kinds: Sequence[str]) -> Floats:
    """(N, F) differences of features in units of their root mean square over the pairs."""
    unknown = [k for k in kinds if k not in MEASURES]
    if unknown:
        raise VoteError(f"no features are called {unknown[0]!r}; there are {', '.join(MEASURES)}")
    rows = {(r.model, r.prompt_id, r.seed): r for c in pairs for r in (c.a, c.b)}
    shown = [Voted(row=r, data=_bytes(pictures, k, r.sha256)) for k, r in rows.items()]
    columns = [column for kind in kinds for column in MEASURES[kind](shown).values()]
    if not columns:
        raise VoteError("the results have no scores: choose other features, or score the pictures first")
    table, at = np.stack(columns, 1), {k: i for i, k in enumerate(rows)}
    sides = [
        [at[r.model, r.prompt_id, r.seed] for r in side]
        for side in zip(*((c.a, c.b) for c in pairs), strict=True)
    ]
    gap = np.nan_to_num(table[sides[0]] - table[sides[1]], nan=0.0)
    scale = np.sqrt((gap**2).mean(0))
    if not (scale > 1e-12).any():
        raise VoteError("no feature differs between the two sides of any pair: choose other features")
    out: Floats = gap[:, scale > 1e-12] / scale[scale > 1e-12]
    return out


def _bytes(pictures: Pictures, key: tuple[str, str, int], sha256: str) -> bytes:
    file: Path = pictures.files[key, sha256]
    try:
        return file.read_bytes()
    except OSError as error:
        raise VoteError(f"{file} cannot be read ({error.strerror}): restore the picture") from error
