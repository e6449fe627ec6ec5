"""What scorers learn from: votes on two pictures, rankings of several, ratings of one."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from scorers.images import ImageLike


class Vote(NamedTuple):
    """One comparison. A plain tuple in this order will do."""

    first: ImageLike
    """Picture in any form of ``scorers.images``; files and lazy sources are read when their batch comes.
    For heads on frozen towers a tensor (D,) of features, see ``scorers.learners.embedded``."""
    second: ImageLike
    prompt: str
    label: float
    """Probability in [0, 1] that the first picture is preferred; 0.5 is a tie."""
    user: str = ""
    """Who voted, for scorers of single people."""
    dim: str = ""
    """What was judged (``"aesthetics"``, say), for scorers with several dimensions; "" is the main one."""


class Ranking(NamedTuple):
    """Several pictures of one prompt, judged together."""

    images: Sequence[ImageLike]
    prompt: str
    values: Sequence[float]
    """One per picture, higher is better, equal is a tie."""
    user: str = ""
    dim: str = ""


class Rating(NamedTuple):
    """One picture, judged alone."""

    image: ImageLike
    prompt: str
    values: Sequence[float]
    """Shares of the marks 1, 2, ..., n, in [0, 1] with sum 1; or a single mean mark."""
    user: str = ""


Item = Vote | Ranking | Rating
T = TypeVar("T", Vote, Ranking, Rating, Item)


def as_votes(items: Sequence[Item]) -> list[Vote]:
    """Votes as they are, and each ranking as the pairs of it that are strictly ordered, the better first.

    Of ratings each is paired with the next of the same prompt that has another mean.
    """
    votes, ratings = [], []
    for item in items:
        if isinstance(item, Rating):
            ratings.append(item)
        elif isinstance(item, Ranking):
            votes += _pairs(item)
        else:
            votes.append(item if isinstance(item, Vote) else Vote(*item))
    return votes + _rated_pairs(ratings)


def mean_mark(rating: Rating) -> float:
    """Mean of the marks 1, 2, ..., n."""
    if len(rating.values) == 1:
        return float(rating.values[0])
    return sum((i + 1) * share for i, share in enumerate(rating.values))


def _rated_pairs(ratings: Sequence[Rating]) -> list[Vote]:
    last: dict[str, Rating] = {}
    votes = []
    for rating in ratings:
        before = last.get(rating.prompt)
        if before is not None and mean_mark(before) != mean_mark(rating):
            label = float(mean_mark(before) > mean_mark(rating))
            votes.append(Vote(before.image, rating.image, rating.prompt, label, rating.user))
        last[rating.prompt] = rating
    return votes


def _pairs(ranking: Ranking) -> list[Vote]:
    rows = sorted(zip(ranking.values, range(len(ranking.images)), strict=True), reverse=True)
    return [
        Vote(ranking.images[i], ranking.images[j], ranking.prompt, 1.0, ranking.user, ranking.dim)
        for (a, i), (b, j) in itertools.combinations(rows, 2)
        if a > b
    ]


def as_ranking(vote: Vote) -> Ranking:
    """A vote as a list of two.

    Raises:
        ValueError: a soft label, which a list cannot express.
    """
    if vote.label not in (0, 0.5, 1):
        raise ValueError(
            f"a listwise loss needs hard labels (0, 0.5 or 1), got {vote.label}; soft ones need a pair loss"
        )
    return Ranking((vote.first, vote.second), vote.prompt, (vote.label, 1 - vote.label), vote.user, vote.dim)


def prompt_of(item: Item) -> str:
    """Prompt of an item or of a plain tuple in the order of Vote."""
    return item.prompt if isinstance(item, Vote | Ranking | Rating) else str(item[2])


def split_by_prompt(votes: Sequence[T], shares: Sequence[float]) -> list[list[T]]:
    """Split votes by a hash of their prompt: no prompt is on two sides, and growing data keep their split."""
    parts: list[list[T]] = [[] for _ in shares]
    for vote in votes:
        place = int.from_bytes(hashlib.sha256(prompt_of(vote).encode()).digest()[:8]) / 2**64 * sum(shares)
        part = 0
        while part < len(shares) - 1 and place >= sum(shares[: part + 1]):
            part += 1
        parts[part].append(vote)
    return parts


def check_votes(votes: Sequence[Item], what: str) -> None:
    """Check labels and count.

    Raises:
        ValueError: no votes at all, a label outside [0, 1], a list without order, or wrong shares.
    """
    if not votes:
        raise ValueError(f"there are no {what}; votes are split by prompt, so give votes on more prompts")
    for i, vote in enumerate(votes):
        if isinstance(vote, Ranking):
            _check_ranking(vote, f"{what}: ranking {i}")
        elif isinstance(vote, Rating):
            _check_rating(vote, f"{what}: rating {i}")
        elif not 0 <= vote[3] <= 1:
            raise ValueError(
                f"{what}: vote {i} has label {vote[3]}; it must lie in [0, 1] (1 = the first picture wins)"
            )


def _check_ranking(ranking: Ranking, where: str) -> None:
    if len(ranking.images) != len(ranking.values) or len(ranking.images) < 2:
        raise ValueError(
            f"{where} has {len(ranking.images)} pictures and {len(ranking.values)} values; it needs two "
            "pictures or more, and a value for each"
        )
    if not all(math.isfinite(v) for v in ranking.values):
        raise ValueError(f"{where} has values {tuple(ranking.values)}; they must be finite")


def _check_rating(rating: Rating, where: str) -> None:
    shares = len(rating.values) > 1
    wrong = not all(math.isfinite(v) and v >= 0 for v in rating.values) or not rating.values
    if wrong or (shares and abs(sum(rating.values) - 1) > 1e-3):
        raise ValueError(
            f"{where} has values {tuple(rating.values)}; give one mean mark, or shares of the marks that add "
            "up to 1"
        )
