"""People's votes on an evaluation's pictures: win rates, standings, and how well scorers foretell them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffalign.evaluate.crossed import crossed_interval
from diffalign.evaluate.details import Calibration, Range, as_range
from diffalign.evaluate.results import Row
from diffalign.evaluate.standings import named_standings
from diffalign.evaluate.stats import Floats, widened
from diffalign.votes.count import counted
from diffalign.votes.rows import Vote, VoteError, read_votes
from diffalign.votes.summary import duels_of, outcome

ASPECT = "overall"
"""Aspect of the votes that scorers are compared with."""


@dataclass(frozen=True, kw_only=True)
class Ballot:
    """Votes that count, with their pictures; V of them."""

    votes: list[Vote]
    sides: list[tuple[Row, Row]]
    """Rows of the results for a and b."""
    left_out: int
    """Votes on other pictures."""

    @property
    def outcome(self) -> Floats:
        """(V,) 1 where a won, 0.5 for a tie or both bad, 0 where b won."""
        return np.array([outcome(v, v.a.model) for v in self.votes])

    def mean(self, values: Floats, chosen: Sequence[int]) -> Range:
        """Mean of values of the chosen votes; prompts and, crossed with them, raters are resampled."""
        some = [self.votes[i] for i in chosen]
        return as_range(crossed_interval(values, [v.prompt_id for v in some], [v.rater for v in some]))

    def share(self, values: Floats, chosen: Sequence[int]) -> Range:
        """The same of a share, whose interval has a width also where it is 0 or 1."""
        some = [self.votes[i] for i in chosen]
        prompts = [v.prompt_id for v in some]
        found = crossed_interval(values, prompts, [v.rater for v in some])
        return as_range(widened(found, len(set(prompts))))


def read_ballot(files: Sequence[Path], rows: Sequence[Row]) -> Ballot:
    """Votes of the files on pictures of ``rows``; which of them count is said by ``votes.count.counted``.

    Raises:
        VoteError: a file that cannot be read, or no vote on any of these pictures.
    """
    known = {(row.model, row.prompt_id, row.seed, row.sha256): row for row in rows}
    votes, sides, left_out = [], [], 0
    for vote in counted(read_votes(files)).votes:
        if vote.aspect != ASPECT:
            continue
        keys = [(s.model, vote.prompt_id, vote.seed, s.sha256) for s in (vote.a, vote.b)]
        if all(key in known for key in keys):
            votes.append(vote)
            sides.append((known[keys[0]], known[keys[1]]))
        else:
            left_out += 1
    if not votes:
        names = ", ".join(map(str, files))
        raise VoteError(
            f"{names}: none of the votes is on pictures of this evaluation ({left_out} are on others, or on "
            "pictures that have changed): name the votes of its gallery"
        )
    return Ballot(votes=votes, sides=sides, left_out=left_out)


def win_rates(ballot: Ballot, models: Sequence[str]) -> dict[str, Any]:
    """What people say: each model against the base (win rate, W/T/L, both bad), and standings of three."""
    found: dict[str, Any] = {"raters": len({v.rater for v in ballot.votes}), "votes": len(ballot.votes)}
    found["models"] = {m: row for m in models[1:] if (row := _against(ballot, models[0], m)) is not None}
    if len(models) > 2:
        found["league"] = named_standings(duels_of(ballot.votes, models), models)
    return found


def _against(ballot: Ballot, base: str, model: str) -> dict[str, Any] | None:
    """One model against the base; None without votes on both."""
    won, chosen = _for_model(ballot, base, model)
    if not len(won):
        return None
    bad = sum(ballot.votes[i].choice == "both_bad" for i in chosen)
    counts = {n: int((won == w).sum()) for n, w in (("wins", 1.0), ("ties", 0.5), ("losses", 0.0))}
    return {
        "win_rate": ballot.share(won, chosen),
        **counts,
        "both_bad": bad,
    }


def _for_model(ballot: Ballot, base: str, model: str) -> tuple[Floats, list[int]]:
    """Outcomes for the model of the votes on it and the base, and the numbers of those votes."""
    won, chosen = [], []
    for i, (vote, worth) in enumerate(zip(ballot.votes, ballot.outcome, strict=True)):
        pair = (vote.a.model, vote.b.model)
        if sorted(pair) == sorted((base, model)):
            won.append(worth if vote.a.model == model else 1 - worth)
            chosen.append(i)
    return np.array(won), chosen


def calibration(ballot: Ballot, metric: str, models: Sequence[str], margin: float) -> Calibration:
    """Compare a scorer with people on the pictures that they voted on.

    Args:
        ballot: the votes.
        metric: scorer whose scores the rows have.
        models: the base first.
        margin: difference of scores up to which the scorer calls a tie.
    """
    gap = np.array([a.scores[metric] - b.scores[metric] for a, b in ballot.sides])
    decided = np.isin(ballot.outcome, (0.0, 1.0))
    alike = 0.5 + 0.5 * np.sign(gap) * np.sign(ballot.outcome - 0.5)
    says = 0.5 + 0.5 * ((gap > margin).astype(float) - (gap < -margin))
    bias = {}
    for model in models[1:]:
        won, chosen = _for_model(ballot, models[0], model)
        if len(won):
            flip = [ballot.votes[i].a.model != model for i in chosen]
            own = np.where(flip, 1 - says[chosen], says[chosen])
            bias[model] = ballot.mean(own - won, chosen)
    if not decided.any():
        raise VoteError("all votes are ties, so there is nothing that a scorer could decide alike")
    accuracy = ballot.share(alike[decided], np.flatnonzero(decided).tolist())
    return Calibration(metric=metric, votes=int(decided.sum()), accuracy=accuracy, bias=bias)
