"""People's votes on an evaluation's pictures: win rates, standings, and how well scorers foretell them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffalign.evaluate.bradley_terry import make_duels
from diffalign.evaluate.details import Calibration, Standing, as_range
from diffalign.evaluate.league import named_standings
from diffalign.evaluate.results import Row
from diffalign.evaluate.stats import ALPHA, Floats, Interval, widened
from diffalign.votes.rows import Vote, VoteError, read_votes

WORTH = {"a": 1.0, "b": 0.0, "tie": 0.5, "both_bad": 0.5}


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
        return np.array([WORTH[v.choice] for v in self.votes])

    @property
    def prompts(self) -> np.ndarray:
        """(V,) number of the prompt."""
        return np.unique([v.prompt_id for v in self.votes], return_inverse=True)[1].reshape(-1)


def read_ballot(files: Sequence[Path], rows: Sequence[Row]) -> Ballot:
    """Votes of the files on pictures of ``rows``; skipped ones, repeats, anchors and aspects do not count.

    Raises:
        VoteError: a file that cannot be read, or no vote on any of these pictures.
    """
    known = {(row.model, row.prompt_id, row.seed, row.sha256): row for row in rows}
    votes, sides, left_out = [], [], 0
    for vote in read_votes(files):
        if vote.choice == "skip" or vote.repeat_of or vote.anchor or vote.aspect != "overall":
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


def share(values: Floats, groups: np.ndarray, resamples: int = 2000) -> Interval:
    """Mean of (V,) values, with an interval that resamples their groups, however many each has."""
    count = int(groups.max()) + 1
    total = np.bincount(groups, values, count)
    size = np.bincount(groups, minlength=count).astype(float)
    drawn = np.random.default_rng(0).multinomial(count, [1 / count] * count, size=resamples)
    means = (drawn @ total) / np.maximum(drawn @ size, 1)
    low, high = np.quantile(means, (ALPHA / 2, 1 - ALPHA / 2))
    return Interval(value=float(total.sum() / size.sum()), low=float(low), high=float(high))


def win_rates(ballot: Ballot, models: Sequence[str]) -> dict[str, Any]:
    """What people say: each model against the base (win rate, W/T/L, both bad), and standings of three."""
    found: dict[str, Any] = {"raters": len({v.rater for v in ballot.votes}), "votes": len(ballot.votes)}
    found["models"] = {m: row for m in models[1:] if (row := _against(ballot, models[0], m)) is not None}
    if len(models) > 2:
        found["league"] = _league(ballot, models)
    return found


def _against(ballot: Ballot, base: str, model: str) -> dict[str, Any] | None:
    """One model against the base; None without votes on both."""
    won, chosen = _for_model(ballot, base, model)
    if not len(won):
        return None
    groups = np.unique(ballot.prompts[chosen], return_inverse=True)[1].reshape(-1)
    bad = sum(ballot.votes[i].choice == "both_bad" for i in chosen)
    counts = {n: int((won == w).sum()) for n, w in (("wins", 1.0), ("ties", 0.5), ("losses", 0.0))}
    return {
        "win_rate": as_range(widened(share(won, groups), int(groups.max()) + 1)),
        **counts,
        "both_bad": bad,
    }


def _for_model(ballot: Ballot, base: str, model: str) -> tuple[Floats, list[int]]:
    """Outcomes for the model of the votes on it and the base, and the numbers of those votes."""
    won, chosen = [], []
    for i, (vote, outcome) in enumerate(zip(ballot.votes, ballot.outcome, strict=True)):
        pair = (vote.a.model, vote.b.model)
        if sorted(pair) == sorted((base, model)):
            won.append(outcome if vote.a.model == model else 1 - outcome)
            chosen.append(i)
    return np.array(won), chosen


def _league(ballot: Ballot, models: Sequence[str]) -> list[Standing]:
    numbers = {model: i for i, model in enumerate(models)}
    duels = make_duels(
        len(models),
        [numbers[v.a.model] for v in ballot.votes],
        [numbers[v.b.model] for v in ballot.votes],
        ballot.outcome,
        ballot.prompts,
        [1 if v.left == "a" else -1 for v in ballot.votes],
    )
    return named_standings(duels, models)


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
            groups = np.unique(ballot.prompts[chosen], return_inverse=True)[1].reshape(-1)
            bias[model] = as_range(share(own - won, groups))
    if not decided.any():
        raise VoteError("all votes are ties, so there is nothing that a scorer could decide alike")
    groups = np.unique(ballot.prompts[decided], return_inverse=True)[1].reshape(-1)
    accuracy = as_range(widened(share(alike[decided], groups), int(groups.max()) + 1))
    return Calibration(metric=metric, votes=int(decided.sum()), accuracy=accuracy, bias=bias)
