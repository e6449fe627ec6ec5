"""A simulated person who votes as people do: in rows of votes, with repeats, anchors, ties and both bad."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import torch
from torch import Tensor

from diffalign.evaluate.results import Row
from diffalign.votes.choose import Candidate
from diffalign.votes.pictures import gallery_hash
from diffalign.votes.rows import Choice, Shown, Vote
from diffalign.world.grammar import parse
from diffalign.world.oracle import measure, obeys
from diffalign.world.raters import Rater

REPEATS = 0.08
"""Share of pairs that are shown once more, with sides exchanged."""
ANCHORS = 0.03
"""Attention checks, as a share of pairs."""
THINKS = 2300
"""Milliseconds that a vote takes, by the median."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the person sees in the pictures of V pairs."""

    first: Tensor
    """(V,) noise-free utilities of sides a."""
    second: Tensor
    """(V,) of sides b."""
    bad: Tensor
    """(V,) bool: neither picture shows what the prompt asks."""


def look(rater: Rater, pairs: Sequence[Candidate], pictures: Mapping[str, Tensor]) -> Seen:
    """Utilities of pairs; ``pictures`` are (3, 64, 64) uint8 by sha256."""
    prompts = [parse(c.a.prompt) for c in pairs]
    sides = [torch.stack([pictures[r.sha256] for r in rows]).float() / 255 for rows in _sides(pairs)]
    found = [measure(side) for side in sides]
    first, second = (rater.utility(m, prompts) for m in found)
    obeyed = [obeys(m, prompts).all for m in found]
    return Seen(first=first, second=second, bad=~(obeyed[0] | obeyed[1]))


def simulated_votes(
    rater: Rater,
    pairs: Sequence[Candidate],
    pictures: Mapping[str, Tensor],
    rows: Sequence[Row],
    *,
    seed: int,
    start: datetime | None = None,
) -> list[Vote]:
    """Votes of a person on pairs, in the order of their time.

    Args:
        rater: whose taste and noise they follow.
        pairs: what is voted on.
        pictures: (3, 64, 64) uint8 by sha256.
        rows: all pictures of the gallery, which name it.
        seed: of noise, sides, repeats and anchors.
        start: time of the first vote; now if None.
    """
    rng = np.random.default_rng([seed, 13])
    seen, gallery, clock = look(rater, pairs, pictures), gallery_hash(rows), _Clock(rng, start)
    votes = []
    for i, choice in enumerate(_choices(rater, seen, rng)):
        votes.append(_vote(pairs[i], choice, gallery, rater, clock, rng))
    for i in np.flatnonzero(rng.random(len(pairs)) < REPEATS).tolist():
        again = _choices(rater, seen, rng)[i]
        votes.append(_exchanged(_vote(pairs[i], again, gallery, rater, clock, rng), votes[i]))
    for i in np.flatnonzero(rng.random(len(pairs)) < ANCHORS).tolist():
        votes.append(_anchor(_vote(pairs[i], "a", gallery, rater, clock, rng), rater, rng))
    return votes


class _Clock:
    """Time that passes with every vote."""

    def __init__(self, rng: np.random.Generator, start: datetime | None) -> None:
        self.now, self.rng = start or datetime.now(UTC), rng

    def tick(self) -> tuple[datetime, int]:
        ms = round(THINKS * float(np.exp(0.4 * self.rng.standard_normal())))
        self.now += timedelta(milliseconds=ms)
        return self.now, ms


def _sides(pairs: Sequence[Candidate]) -> tuple[list[Row], list[Row]]:
    return [c.a for c in pairs], [c.b for c in pairs]


def _choices(rater: Rater, seen: Seen, rng: np.random.Generator) -> list[Choice]:
    """What the person says this time; noise differs from time to time."""
    votes = rater.vote(seen.first, seen.second, rng)
    words: dict[float, Choice] = {1.0: "a", 0.0: "b", 0.5: "tie"}
    said = [words[v] for v in votes.tolist()]
    return ["both_bad" if bad else word for bad, word in zip(seen.bad.tolist(), said, strict=True)]


def _vote(
    pair: Candidate, choice: Choice, gallery: str, rater: Rater, clock: _Clock, rng: np.random.Generator
) -> Vote:
    time, ms = clock.tick()
    return Vote(
        gallery=gallery,
        rater=f"simulated-{rater.name}",
        time=time,
        ms=ms,
        prompt_id=pair.prompt_id,
        prompt=pair.a.prompt,
        seed=pair.seed,
        a=Shown(model=pair.a.model, sha256=pair.a.sha256),
        b=Shown(model=pair.b.model, sha256=pair.b.sha256),
        left="a" if rng.random() < 0.5 else "b",
        choice=choice,
    )


def _exchanged(vote: Vote, first: Vote) -> Vote:
    """The vote as a repeat of the first one, which had the other side on the left."""
    return vote.model_copy(update={"left": "b" if first.left == "a" else "a", "repeat_of": first.time})


def _anchor(vote: Vote, rater: Rater, rng: np.random.Generator) -> Vote:
    """An attention check: one picture, degraded on one side; only carelessness misses it."""
    whole = "a" if rng.random() < 0.5 else "b"
    missed = rng.random() < rater.careless / 2
    choice = whole if not missed else ("b" if whole == "a" else "a")
    return vote.model_copy(update={"b": vote.a, "anchor": whole, "choice": choice})
