"""Which votes count: raters who pass the anchors, the last word of each, and no attention checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diffalign.votes.rows import Vote, VoteError

MOST_FAILED = 1 / 3
"""Share of failed anchors above which a rater is left out."""

Pair = tuple[str, int, tuple[str, ...], tuple[str, ...]]
"""Prompt id, seed, and the two sides (model, sha256), sorted: the same whichever side is called a."""


def pair_of(vote: Vote) -> Pair:
    """What a vote compared."""
    first, second = sorted([(vote.a.model, vote.a.sha256), (vote.b.model, vote.b.sha256)])
    return vote.prompt_id, vote.seed, first, second


def verdict(vote: Vote) -> str:
    """The picture that won, as ``model<TAB>sha256``, or tie, both_bad or skip: the same if sides change."""
    if vote.choice in ("a", "b"):
        side = vote.a if vote.choice == "a" else vote.b
        return f"{side.model}\t{side.sha256}"
    return vote.choice


@dataclass(frozen=True, kw_only=True)
class Tally:
    """How a rater did at the attention checks."""

    failed: int
    shown: int

    @property
    def fails(self) -> bool:
        """Whether over a third were failed."""
        return self.shown > 0 and self.failed > MOST_FAILED * self.shown


def anchors(votes: Sequence[Vote]) -> Tally:
    """Count the anchors of one rater; to skip one, or to call both sides bad, is no answer."""
    answered = [v for v in votes if v.anchor is not None and v.choice not in ("skip", "both_bad")]
    return Tally(failed=sum(v.choice != v.anchor for v in answered), shown=len(answered))


@dataclass(frozen=True, kw_only=True)
class Counted:
    """Votes that count, and how many do not."""

    votes: tuple[Vote, ...]
    """In the order of their time."""
    left_out: dict[str, int]
    """Votes removed with each rater who failed the anchors."""
    anchors: int
    repeats: int
    skips: int
    revised: int
    """Votes that their rater gave again, on the same pair and aspect, later."""


def refuse_none(votes: Sequence[Vote]) -> None:
    """Refuse an empty set of votes.

    Raises:
        VoteError: there are none.
    """
    if not votes:
        raise VoteError("there are no votes: vote in the gallery, and export them from it first")


def by_rater(votes: Sequence[Vote]) -> dict[str, list[Vote]]:
    """Votes by rater, in the order of the first vote of each."""
    found: dict[str, list[Vote]] = {}
    for vote in votes:
        found.setdefault(vote.rater, []).append(vote)
    return found


def counted(votes: Sequence[Vote]) -> Counted:
    """Pick the votes that count.

    Out go raters who fail over a third of their anchors, the anchors and the repeats of the others, all but a
    rater's last word on a pair and aspect, and skips: a later skip takes a vote back.
    """
    failing = {rater for rater, given in by_rater(votes).items() if anchors(given).fails}
    kept = [v for v in votes if v.rater not in failing]
    real = [v for v in kept if v.anchor is None and v.repeat_of is None]
    ordered = sorted(real, key=lambda v: v.time)
    last = {(v.rater, pair_of(v), v.aspect): v for v in ordered}
    answered = sorted((v for v in last.values() if v.choice != "skip"), key=lambda v: v.time)
    return Counted(
        votes=tuple(answered),
        left_out={r: sum(v.rater == r for v in votes) for r in sorted(failing)},
        anchors=sum(v.anchor is not None for v in kept),
        repeats=sum(v.repeat_of is not None and v.anchor is None for v in kept),
        skips=sum(v.choice == "skip" for v in last.values()),
        revised=len(real) - len(last),
    )
