"""Votes of each person among records: which may stand for a person, and who saw a pair the other way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffalign.data.records import DataError, Record
from diffalign.data.split import normalise


class Histories:
    """Pairs of each rater, by their position among the records.

    Args:
        records: as they were read; positions are those that a batch carries as ``sample``.
        images: for each record a name of each image that is the same where the image is: a digest of its
            bytes. None takes where the images lie, which is enough where no image lies in two places.

    Raises:
        DataError: no record names a rater, or ``images`` are not one name for each image.
    """

    def __init__(self, records: Sequence[Record], images: Sequence[Sequence[str]] | None = None) -> None:
        """See the class."""
        self.raters = [record.rater for record in records]
        if not any(rater is not None for rater in self.raters):
            raise DataError(
                "no record names who judged: people need data with user ids (Pick-a-Pic, gallery votes)"
            )
        names = [[i.where for i in r.images] for r in records] if images is None else images
        if [len(n) for n in names] != [len(r.images) for r in records]:
            raise DataError("there must be one name for each image of each record")
        self.prompts = [{normalise(r.prompt_of(i)) for i in range(len(r.images))} for r in records]
        self.images = [frozenset(n) for n in names]
        self.of: dict[str, list[int]] = {}
        """Positions of each rater's decided pairs, in their order."""
        self._winner: dict[frozenset[str], dict[str, str]] = {}
        for position, record in enumerate(records):
            if record.rater is not None and record.kind == "pair" and not record.undecided:
                self.of.setdefault(record.rater, []).append(position)
                pair = self._winner.setdefault(self.images[position], {})
                pair[record.rater] = names[position][record.winner]

    @property
    def people(self) -> list[str]:
        """Raters with a decided pair, in the order in which they come."""
        return list(self.of)

    def support(
        self, rater: str, count: int, rng: np.random.Generator, query: Sequence[int] = ()
    ) -> list[int]:
        """At most ``count`` positions of a rater's pairs that share no prompt and no image with the query.

        Args:
            rater: whose.
            count: how many votes stand for the person; fewer come back where fewer are left.
            rng: draws them without order.
            query: positions of the pairs that are to be foretold or trained on.

        Raises:
            DataError: the rater has no decided pair at all.
        """
        if rater not in self.of:
            raise DataError(f"{rater!r} has no decided pair; there are {len(self.of)} people who have")
        prompts = set[str]().union(*(self.prompts[q] for q in query))
        images = frozenset[str]().union(*(self.images[q] for q in query))
        left = [p for p in self.of[rater] if not self.prompts[p] & prompts and not self.images[p] & images]
        return [left[i] for i in rng.permutation(len(left))[:count]]

    def opponents(self, position: int) -> list[str]:
        """Raters who saw the pair of a record the other way round."""
        own = self.raters[position]
        votes = self._winner.get(self.images[position], {})
        if own is None or own not in votes:
            return []
        return [other for other, winner in votes.items() if winner != votes[own]]


def chunks(positions: Sequence[int], size: int, rng: np.random.Generator) -> list[list[int]]:
    """A person's votes shuffled and cut into sets of ``size``: several descriptions of one person (PPD).

    Raises:
        ValueError: a size below 1.
    """
    if size < 1:
        raise ValueError(f"size is {size}; a set has at least 1 vote")
    order = [positions[i] for i in rng.permutation(len(positions))]
    return [order[i : i + size] for i in range(0, len(order) - size + 1, size)]
