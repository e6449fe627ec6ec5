"""``votes check``: whether votes fit their pictures, and whether their raters paid attention."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from diffalign.votes.count import anchors, by_rater, refuse_none, verdict
from diffalign.votes.pictures import Pictures
from diffalign.votes.rows import Vote, VoteError

FAST = 400
"""Milliseconds below which nobody has looked at two pictures."""
ALPHA = 0.05


@dataclass(frozen=True, kw_only=True)
class RaterCheck:
    """What one rater's votes say about the rater."""

    rater: str
    votes: int
    """All rows, skips, repeats and anchors included."""
    left: int
    """Times the left picture was chosen."""
    decided: int
    """Times either picture was chosen."""
    left_p: float
    """Exact two-sided binomial test that left is chosen half of the time."""
    agreed: int
    """Repeats answered as the first time."""
    repeats: int
    """Repeats that can be compared with their first time."""
    anchors_failed: int
    anchors: int
    fast: int
    """Votes given in under 400 ms."""
    median_ms: float
    left_out: bool
    """Over a third of the anchors failed: none of the votes counts."""

    @property
    def left_share(self) -> float:
        """Share of the left picture among the decided votes; NaN where there are none."""
        return self.left / self.decided if self.decided else math.nan

    @property
    def self_agreement(self) -> float:
        """Share of repeats answered as before; NaN where there are none."""
        return self.agreed / self.repeats if self.repeats else math.nan

    def remarks(self) -> list[str]:
        """What is wrong with this rater, in words."""
        found = []
        if self.left_out:
            failed = f"failed {self.anchors_failed} of {self.anchors} anchors"
            found.append(f"{failed}: left out, {self.votes} votes removed")
        if self.left_p < ALPHA:
            found.append(f"left chosen in {self.left_share:.0%} of {self.decided} (p = {self.left_p:.2g})")
        if self.fast:
            found.append(f"{self.fast} votes under {FAST} ms")
        return found


@dataclass(frozen=True, kw_only=True)
class Check:
    """What ``check`` found."""

    votes: int
    raters: tuple[RaterCheck, ...]
    galleries: dict[str, int]
    """Votes by gallery hash."""
    unknown_galleries: dict[str, int]
    """Those that no given folder makes; empty where no folder was given."""
    troubles: dict[str, int]
    """What is wrong with the pictures of votes, and with how many votes."""
    pictures_checked: bool

    @property
    def usable(self) -> bool:
        """Whether all votes fit the given pictures."""
        return not (self.unknown_galleries or self.troubles)

    def as_json(self) -> dict[str, Any]:
        """Everything, for a file; what is not a number becomes null."""
        raters = [
            asdict(r) | {"left_share": r.left_share, "self_agreement": r.self_agreement} for r in self.raters
        ]
        found: dict[str, Any] = finite(asdict(self) | {"usable": self.usable, "raters": raters})
        return found


def check(votes: Sequence[Vote], pictures: Pictures | None = None) -> Check:
    """Look at votes and, where pictures are given, compare every voted picture's file with its hash.

    Raises:
        VoteError: there are no votes.
    """
    refuse_none(votes)
    galleries = Counter(v.gallery for v in votes)
    unknown = {} if pictures is None else {g: n for g, n in galleries.items() if g not in pictures.galleries}
    return Check(
        votes=len(votes),
        raters=tuple(_rater(rater, given) for rater, given in by_rater(votes).items()),
        galleries=dict(galleries),
        unknown_galleries=unknown,
        troubles={} if pictures is None else _troubles(votes, pictures),
        pictures_checked=pictures is not None,
    )


def finite(value: Any) -> Any:
    """The same with null for every number that is not finite, as JSON has no other."""
    if isinstance(value, dict):
        return {key: finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def binomial_p(k: int, n: int) -> float:
    """Exact two-sided p-value of k successes in n trials of probability 1/2; 1 for no trials."""
    tail, ways = 0, 1
    for i in range(min(k, n - k) + 1):
        tail += ways
        ways = ways * (n - i) // (i + 1)
    return float(min(1.0, 2 * tail / 2**n))


def _rater(rater: str, votes: Sequence[Vote]) -> RaterCheck:
    decided = [v for v in votes if v.choice in ("a", "b") and v.anchor is None]
    left = sum(v.choice == v.left for v in decided)
    agreed, repeats = _repeats(votes)
    tally = anchors(votes)
    answered = [v.ms for v in votes if v.choice != "skip"]
    return RaterCheck(
        rater=rater,
        votes=len(votes),
        left=left,
        decided=len(decided),
        left_p=binomial_p(left, len(decided)),
        agreed=agreed,
        repeats=repeats,
        anchors_failed=tally.failed,
        anchors=tally.shown,
        fast=sum(ms < FAST for ms in answered),
        median_ms=float(median(answered)) if answered else math.nan,
        left_out=tally.fails,
    )


def _repeats(votes: Sequence[Vote]) -> tuple[int, int]:
    """Repeats that agree with the first time, and repeats whose first time is there; none may be skipped."""
    first = {(v.time, v.aspect): verdict(v) for v in votes if v.repeat_of is None}
    pairs = [
        (verdict(v), first[v.repeat_of, v.aspect])
        for v in votes
        if v.repeat_of is not None and (v.repeat_of, v.aspect) in first
    ]
    answered = [(a, b) for a, b in pairs if "skip" not in (a, b)]
    return sum(a == b for a, b in answered), len(answered)


def _troubles(votes: Sequence[Vote], pictures: Pictures) -> dict[str, int]:
    found: Counter[str] = Counter()
    seen: dict[tuple[str, str, int, str], str | None] = {}
    for vote in votes:
        said = {_trouble(vote, side, pictures, seen) for side in ("a", "b")} - {None}
        found.update(str(s) for s in said)
    return dict(found)


def _trouble(
    vote: Vote, side: str, pictures: Pictures, seen: dict[tuple[str, str, int, str], str | None]
) -> str | None:
    """What is wrong with one side, each picture's file read once."""
    shown = vote.a if side == "a" else vote.b
    key = (shown.model, vote.prompt_id, vote.seed, shown.sha256)
    if key not in seen:
        try:
            pictures.read(vote, shown)
            seen[key] = None
        except VoteError as error:
            seen[key] = str(error)
    return seen[key]


def refuse_unusable(found: Check) -> None:
    """Refuse votes that do not fit their pictures.

    Raises:
        VoteError: votes of another gallery, or pictures that are missing or changed; names the first.
    """
    if found.unknown_galleries:
        gallery, n = next(iter(found.unknown_galleries.items()))
        raise VoteError(
            f"{n} of {found.votes} votes are of another gallery ({gallery[:12]}): name with --images the "
            "folders of results that it was made of, all of them"
        )
    refuse_troubles(found.troubles, found.votes)


def refuse_troubles(troubles: Mapping[str, int], votes: int) -> None:
    """Refuse votes whose pictures are missing or changed.

    Raises:
        VoteError: names the first.
    """
    if troubles:
        trouble, n = next(iter(troubles.items()))
        more = f"; {len(troubles) - 1} more pictures likewise" if len(troubles) > 1 else ""
        raise VoteError(f"{n} of {votes} votes cannot be used: {trouble}{more}")
