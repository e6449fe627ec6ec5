"""What scorers settle instead of people, in the form of votes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from diffalign.votes.choose import Candidate
from diffalign.votes.rows import Shown, Vote

RATER = "scorers"
"""Name under which scorers vote, so that their votes can be told from those of people."""


def settled_votes(pairs: Sequence[Candidate], chance: Sequence[float], gallery: str) -> list[Vote]:
    """A vote on each pair for the side that scorers prefer, with their probability in its note.

    Args:
        pairs: what scorers are sure of.
        chance: probability of each that side a is preferred.
        gallery: hash of the folder of results that holds these pairs.
    """
    now = datetime.now(UTC)
    return [
        Vote(
            gallery=gallery,
            rater=RATER,
            time=now + timedelta(milliseconds=i),
            ms=0,
            prompt_id=pair.prompt_id,
            prompt=pair.a.prompt,
            seed=pair.seed,
            a=Shown(model=pair.a.model, sha256=pair.a.sha256),
            b=Shown(model=pair.b.model, sha256=pair.b.sha256),
            left="a",
            choice="a" if p > 0.5 else "b",
            note=f"probability of a: {p:.3f}",
        )
        for i, (pair, p) in enumerate(zip(pairs, chance, strict=True))
    ]
