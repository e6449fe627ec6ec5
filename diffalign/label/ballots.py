"""Preference records as what scorers learn from: votes, rankings, ratings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from diffalign.data.records import DataError, Record
from scorers.votes import Item, Ranking, Rating, Vote

MARKS = 10
"""Ratings of NIMA go from 1 to 10."""


def ballots(records: Sequence[Record], *, ratings: bool = False, dims: Sequence[str] = ()) -> list[Item]:
    """What records of any reader say, in the form that ``scorers.train`` learns from.

    Pairs become votes with the share of the first as label, rankings stay rankings, likes of one prompt
    become a ranking of its pictures. The rater is the user.

    Args:
        records: of any kind.
        ratings: marks of single pictures in place of comparisons: a ranking's values where they lie in
            [1, 10], else a like is 10, a dislike 1, and the sides of a pair have 1 + 9 p.
        dims: for each of these a further vote on every pair that has a ``judged`` score of that name: the
            picture with the higher one wins. They train the conditions of MPS.

    Raises:
        DataError: nothing can be learnt from these records.
    """
    found: list[Item] = []
    likes: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if ratings:
            found += _ratings(record)
        elif record.kind == "pair":
            found += [_vote(record), *_judged(record, dims)]
        elif record.kind == "ranking":
            found.append(Ranking(record.images, record.prompt, record.values, record.rater or ""))
        else:
            likes.setdefault((record.prompt, record.rater or ""), []).append(record)
    found += [r for group in likes.values() for r in _liked(group)]
    if not found:
        raise DataError(
            f"{len(records)} records say nothing that a scorer can learn; it needs pairs, rankings, or a "
            "like and a dislike of one prompt"
        )
    return found


def _vote(record: Record) -> Vote:
    first, second = record.images
    return Vote(first, second, record.prompt, (record.soft or record.values)[0], record.rater or "")


def _judged(record: Record, dims: Sequence[str]) -> Iterator[Vote]:
    for dim in dims:
        if dim in record.judged:
            a, b = record.judged[dim]
            label = 0.5 if a == b else float(a > b)
            yield _vote(record)._replace(label=label, dim=dim)


def _liked(group: Sequence[Record]) -> Iterator[Ranking]:
    """Likes of one prompt by one person; unknown ones say nothing."""
    known = [(i, v) for r in group for i, v in zip(r.images, r.values, strict=True) if v != 0.5]
    if len({v for _, v in known}) > 1:
        images, values = zip(*known, strict=True)
        yield Ranking(images, group[0].prompt, values, group[0].rater or "")


def _ratings(record: Record) -> Iterator[Rating]:
    for i, (image, value) in enumerate(zip(record.images, record.values, strict=True)):
        if record.kind != "ranking":
            mark = 1 + (MARKS - 1) * value
        elif 1 <= value <= MARKS:
            mark = value
        else:
            raise DataError(
                f"{record.source or 'ranking'}: {value} is no mark from 1 to {MARKS}; rescale the scores"
            )
        if record.kind != "labels" or value != 0.5:
            yield Rating(image, record.prompt_of(i), (mark,), record.rater or "")
