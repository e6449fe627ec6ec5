"""Which pair a rater sees next: one that is new to the rater, seldom voted on, and worth it."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Sequence

import numpy as np

from diffalign.evaluate.results import Row
from diffalign.votes.choose import Candidate, candidates, chooser, pool_of
from diffalign.votes.rows import Vote, VoteError

Place = tuple[str, int, str, str]
"""Prompt id, seed and the two models, sorted."""


ANY = ""
"""Stands for every aspect."""


def place_of(prompt_id: str, seed: int, first: str, second: str) -> Place:
    """The same for a pair whichever side is named first."""
    one, two = sorted((first, second))
    return prompt_id, seed, one, two


class Schedule:
    """Pairs of a gallery in the order of a chooser, and who has seen which."""

    def __init__(self, rows: Sequence[Row], choose: str = "random", seed: int = 0) -> None:
        """``choose`` is a name of ``choose.CHOOSERS``.

        Raises:
            VoteError: no such way, no pairs, or results that lack the scores that it needs.
        """
        pairs = candidates(rows)
        if not pairs:
            raise VoteError(
                "there are no two models with different pictures of the same prompt and seed to vote on"
            )
        chosen = chooser(choose).choose(pool_of(pairs), len(pairs), np.random.default_rng([seed, 11]))
        if not len(chosen.people):
            raise VoteError(
                "the scorers are sure of all pairs, so there is nothing to ask: choose another way"
            )
        self.pairs: list[Candidate] = [pairs[i] for i in chosen.people.tolist()]
        self.places = [place_of(c.prompt_id, c.seed, c.a.model, c.b.model) for c in self.pairs]
        self.random = choose == "random"
        self.voted: Counter[Place] = Counter()
        self.handed: dict[str, Place] = {}
        self.seen: dict[tuple[str, str], Counter[Place]] = {}
        self._lock = threading.Lock()

    def record(self, vote: Vote) -> None:
        """Take note of a vote; repeats and anchors settle no pair."""
        if vote.anchor is not None or vote.repeat_of is not None:
            return
        place = place_of(vote.prompt_id, vote.seed, vote.a.model, vote.b.model)
        with self._lock:
            self.voted[place] += 1
            for aspect in (vote.aspect, ANY):
                self.seen.setdefault((vote.rater, aspect), Counter())[place] += 1
            if self.handed.get(vote.rater) == place:
                del self.handed[vote.rater]

    def forget(self, vote: Vote) -> None:
        """Undo ``record`` of a vote that was taken back."""
        if vote.anchor is not None or vote.repeat_of is not None:
            return
        place = place_of(vote.prompt_id, vote.seed, vote.a.model, vote.b.model)
        with self._lock:
            self.voted[place] -= 1
            for aspect in (vote.aspect, ANY):
                self.seen[vote.rater, aspect][place] -= 1

    def next(self, rater: str, aspect: str = ANY) -> Candidate | None:
        """The pair to show, None where the rater has seen all (for the aspect, where one is named).

        Pairs with the fewest votes, and not before another rater at this moment, come first; among them the
        chooser decides, and at random each rater has an order of its own.
        """
        with self._lock:
            seen = self.seen.get((rater, aspect), Counter())
            before = Counter(place for other, place in self.handed.items() if other != rater)
            left = [i for i, place in enumerate(self.places) if not seen[place]]
            if not left:
                self.handed.pop(rater, None)
                return None
            turn = self._turn(rater)
            best: int = min(
                left, key=lambda i: (self.voted[self.places[i]] + before[self.places[i]], turn[i])
            )
            self.handed[rater] = self.places[best]
            return self.pairs[best]

    def _turn(self, rater: str) -> Sequence[int]:
        if not self.random:
            return range(len(self.places))
        own = int.from_bytes(hashlib.sha256(rater.encode()).digest()[:8], "big")
        order: list[int] = np.random.default_rng(own).permutation(len(self.places)).tolist()
        return order
