"""Which pairs are worth a vote: at random, or those that say most; and which of them a scorer may settle."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from diffalign.evaluate.results import Row, models_of
from diffalign.votes.rows import VoteError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
SLOPE = 2.0
"""Log-odds that a usual gap of a scorer counts for, one of its root mean square: 0.88 for the better one."""
IMPLICIT = "implicit"
"""Name of the score, in results, that is an implicit reward; see ``diffalign scorers list``."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A pair that could be voted on: two models' pictures of one prompt and seed."""

    prompt_id: str
    seed: int
    a: Row
    b: Row


@dataclass(frozen=True, kw_only=True)
class Pool:
    """What is known of N candidates before anybody votes."""

    prompt: Integers
    """(N,) number of each pair's prompt."""
    gaps: Floats
    """(N, K) scores of a less those of b by K scorers, as log-odds that a is preferred; K may be 0."""
    margin: Floats | None = None
    """(N,) implicit margin of a over b, in any unit; None where there is none."""

    @property
    def chance(self) -> Floats:
        """(N,) probability that a is preferred: the mean over scorers.

        Raises:
            VoteError: there is no scorer.
        """
        if not self.gaps.shape[1]:
            raise VoteError("the results have no scores to choose by: score them first, or choose at random")
        chance: Floats = _sigmoid(self.gaps).mean(1)
        return chance


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a chooser decided."""

    people: Integers
    """Numbers of the pairs that people are asked, most wanted first."""
    scorer: Mapping[int, float]
    """Pairs that the scorers settle instead, with the probability that a is preferred."""


class Chooser(Protocol):
    """A way to choose."""

    def choose(self, pool: Pool, n: int, rng: np.random.Generator) -> Choice:
        """Choose at most n pairs for people.

        Raises:
            VoteError: the pool lacks the scores that this way needs.
        """


@dataclass(frozen=True)
class Random:
    """Any pair alike: what every other way has to beat."""

    def choose(self, pool: Pool, n: int, rng: np.random.Generator) -> Choice:
        """See Chooser."""
        return _asked(rng.permutation(len(pool.prompt)), n)


@dataclass(frozen=True)
class SmallMargin:
    """Pairs between which the model's implicit reward hardly tells."""

    def choose(self, pool: Pool, n: int, rng: np.random.Generator) -> Choice:
        """See Chooser."""
        if pool.margin is None:
            raise VoteError(
                f"choosing by margin needs the score {IMPLICIT!r} in the results: evaluate with the scorer "
                f"{IMPLICIT}=RUN, or choose in another way"
            )
        return _asked(_ranked(-np.abs(pool.margin), rng), n)


@dataclass(frozen=True)
class Disagreement:
    """Pairs on which scorers differ most: largest s.d. of their probabilities (query by committee)."""

    def choose(self, pool: Pool, n: int, rng: np.random.Generator) -> Choice:
        """See Chooser."""
        if pool.gaps.shape[1] < 2:
            raise VoteError(
                f"choosing by disagreement needs two scorers in the results, and there are "
                f"{pool.gaps.shape[1]}: score with more, or choose in another way"
            )
        return _asked(_ranked(_sigmoid(pool.gaps).std(1), rng), n)


@dataclass(frozen=True)
class EntropySpread:
    """Pairs that scorers find open, spread over prompts: no prompt a second time before all had a first."""

    def choose(self, pool: Pool, n: int, rng: np.random.Generator) -> Choice:
        """See Chooser."""
        order = _ranked(entropy(pool.chance), rng)
        turn = np.empty(len(order))
        used: dict[int, int] = {}
        for i in order:
            prompt = int(pool.prompt[i])
            turn[i] = used.get(prompt, 0)
            used[prompt] = used.get(prompt, 0) + 1
        return _asked(order[np.argsort(turn[order], kind="stable")], n)


@dataclass(frozen=True)
class Routed:
    """Open pairs go to people, most open first; pairs that scorers are sure of are settled by them."""

    sure: float = 0.9
    """Probability from which a pair is not shown to people."""

    def choose(self, pool: Pool, n: int, rng: np.random.Generator) -> Choice:
        """See Chooser."""
        p = pool.chance
        known = np.maximum(p, 1 - p) >= self.sure
        order = _ranked(entropy(p), rng)
        settled = {int(i): float(p[i]) for i in np.flatnonzero(known)}
        return Choice(people=order[~known[order]][:n], scorer=settled)


CHOOSERS: dict[str, type[Chooser]] = {
    "random": Random,
    "margin": SmallMargin,
    "disagreement": Disagreement,
    "entropy": EntropySpread,
    "routed": Routed,
}
"""Ways to choose, by the name that ``--choose`` takes."""


def chooser(name: str) -> Chooser:
    """Make a chooser.

    Raises:
        VoteError: no such way; the message lists them.
    """
    if name not in CHOOSERS:
        raise VoteError(f"no way to choose is called {name!r}; there are {', '.join(CHOOSERS)}")
    return CHOOSERS[name]()


def candidates(rows: Sequence[Row]) -> list[Candidate]:
    """Every two models' pictures of the same prompt and seed, in the order of rows."""
    order = {m: i for i, m in enumerate(models_of(rows))}
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.prompt_id, row.seed), []).append(row)
    return [
        Candidate(prompt_id=prompt, seed=seed, a=a, b=b)
        for (prompt, seed), some in groups.items()
        for a, b in itertools.combinations(sorted(some, key=lambda r: order[r.model]), 2)
        if a.sha256 != b.sha256  # equal pictures say nothing
    ]


def pool_of(pairs: Sequence[Candidate]) -> Pool:
    """Pool of candidates, from the scores of their rows.

    Scores that all pictures have are taken. Scorers have no common unit, and their scores are no
    probabilities: a gap of a scorer's own root mean square over the candidates is taken for log-odds of
    ``SLOPE``. The score ``implicit`` is the margin.
    """
    number = {p: i for i, p in enumerate(dict.fromkeys(c.prompt_id for c in pairs))}
    every = [set(r.scores) for c in pairs for r in (c.a, c.b)]
    names = sorted(set.intersection(*every)) if every else []
    gaps = {n: np.array([c.a.scores[n] - c.b.scores[n] for c in pairs]) for n in names}
    others = [SLOPE * g / max(float(np.sqrt((g**2).mean())), 1e-12) for n, g in gaps.items() if n != IMPLICIT]
    return Pool(
        prompt=np.array([number[c.prompt_id] for c in pairs], dtype=np.int64),
        gaps=np.stack(others, 1) if others else np.zeros((len(pairs), 0)),
        margin=gaps.get(IMPLICIT),
    )


def entropy(p: Floats) -> Floats:
    """Entropy in nats of (N,) probabilities of two outcomes."""
    q = np.clip(p, 1e-12, 1 - 1e-12)
    out: Floats = -(q * np.log(q) + (1 - q) * np.log(1 - q))
    return out


def _sigmoid(x: Floats) -> Floats:
    out: Floats = 0.5 * (1 + np.tanh(x / 2))
    return out


def _ranked(value: Floats, rng: np.random.Generator) -> Integers:
    """Numbers by falling value, equal ones in random order."""
    shuffled = rng.permutation(len(value))
    return shuffled[np.argsort(-value[shuffled], kind="stable")]


def _asked(order: Integers, n: int) -> Choice:
    return Choice(people=order[:n], scorer={})
