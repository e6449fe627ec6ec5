"""``votes explain``: which features of pictures the votes follow.

Logistic regression of the votes on differences of features: P(a beats b) = sigmoid(w . (x_a - x_b) / s + c l)
with each feature's difference in units of its own root mean square s and l = +1 where a was on the left, else
-1. Ties count half. A ridge keeps weights finite where votes are few; intervals are clustered by prompt
(sandwich with the factor G / (G - 1); Liang and Zeger 1986, Biometrika 73).
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffalign.evaluate.stats import ALPHA, Interval
from diffalign.votes.check import finite
from diffalign.votes.count import counted, refuse_none
from diffalign.votes.features import measure_sides
from diffalign.votes.pictures import Pictures
from diffalign.votes.rows import Vote, VoteError

Floats = NDArray[np.float64]
RIDGE = 0.1
"""Precision of the normal prior on each weight, which is per s.d. of the difference: worth half a vote."""
NEARLY_NONE = 1e-6
"""Precision that shows whether weights would grow without end."""
HUGE = 6.0
"""Weight above which two pictures that differ by one s.d. are told apart in 99.8 % of votes."""
_STEPS = 100


@dataclass(frozen=True, kw_only=True)
class Weight:
    """Weight of one feature."""

    name: str
    weight: Interval
    """Change of the log-odds of being chosen for one s.d. of the feature's difference."""


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What a set of votes, or one user's, follows."""

    user: str | None
    votes: int
    """Votes that were explained: decided ones and ties."""
    raters: int
    prompts: int
    weights: tuple[Weight, ...]
    left: float
    """Probability that the left one of two pictures equal in all features is chosen."""
    accuracy: float
    """Share of the decided votes that the fit predicts, on the votes it was fitted to."""
    separated: bool
    """Whether the features tell all decided votes right, so that the ridge alone keeps weights finite."""
    notes: tuple[str, ...]

    def ranked(self) -> list[Weight]:
        """Weights, largest first, whatever their sign."""
        return sorted(self.weights, key=lambda w: -abs(w.weight.value))

    def as_json(self) -> dict[str, Any]:
        """Everything, for a file."""
        found: dict[str, Any] = finite(asdict(self))
        return found


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A logistic regression with its clustered covariance."""

    weights: Floats
    """(F,)"""
    errors: Floats
    """(F,) standard errors, clustered."""
    separated: bool


def explain(
    votes: Sequence[Vote],
    pictures: Pictures,
    *,
    features: Sequence[str] = ("oracle", "image", "scores"),
    user: str | None = None,
    aspect: str = "overall",
    ridge: float = RIDGE,
) -> Explanation:
    """Explain votes by features of the pictures.

    Args:
        votes: as read; those that do not count are left out here, and both-bad ones.
        pictures: the voted pictures.
        features: kinds, see ``features.MEASURES``.
        user: explain this rater's votes alone.
        aspect: aspect of the votes.
        ridge: precision of the prior, above 0.

    Raises:
        VoteError: nothing to explain, pictures missing or changed, or features that they cannot have.
    """
    refuse_none(votes)
    chosen = [v for v in counted(votes).votes if v.aspect == aspect and v.choice != "both_bad"]
    chosen = [v for v in chosen if user is None or v.rater == user]
    prompts = {p: i for i, p in enumerate(dict.fromkeys(v.prompt_id for v in chosen))}
    if len(prompts) < 2:
        who = "" if user is None else f" of {user}"
        raise VoteError(
            f"there are votes{who} on {len(prompts)} prompts for {aspect!r}; explaining needs two at least"
        )
    names, a, b = measure_sides(chosen, pictures, features)
    names, x, notes = differences(names, a, b)
    left = np.array([1.0 if v.left == "a" else -1.0 for v in chosen])
    y = np.array([{"a": 1.0, "b": 0.0}.get(v.choice, 0.5) for v in chosen])
    fit = logistic(np.column_stack([x, left]), y, np.array([prompts[v.prompt_id] for v in chosen]), ridge)
    weights = tuple(Weight(name=n, weight=_interval(fit, i)) for i, n in enumerate(names))
    decided = y != 0.5
    right = ((np.column_stack([x, left]) @ fit.weights > 0) == (y == 1))[decided]
    return Explanation(
        user=user,
        votes=len(chosen),
        raters=len({v.rater for v in chosen}),
        prompts=len(prompts),
        weights=weights,
        left=float(1 / (1 + np.exp(-fit.weights[-1]))),
        accuracy=float(right.mean()) if decided.any() else float("nan"),
        separated=fit.separated,
        notes=(*notes, *_warnings(fit, weights, int(decided.sum()), ridge), *_few(prompts, weights)),
    )


def differences(names: Sequence[str], a: Floats, b: Floats) -> tuple[list[str], Floats, list[str]]:
    """Differences of (V, F) features in units of their root mean square, without those that never differ.

    A feature that one of two pictures lacks counts as equal in both.
    """
    gap = np.nan_to_num(a - b, nan=0.0)
    lacking = np.isnan(a - b).mean(0)
    scale = np.sqrt((gap**2).mean(0))
    kept = scale > 1e-12
    notes = [f"{n} is the same in all pairs: left out" for n, k in zip(names, kept, strict=True) if not k]
    notes += [
        f"{n} is unknown in {share:.0%} of pairs, where it counts as equal"
        for n, share, k in zip(names, lacking, kept, strict=True)
        if k and share > 0
    ]
    return [n for n, k in zip(names, kept, strict=True) if k], gap[:, kept] / scale[kept], notes


def logistic(x: Floats, y: Floats, group: NDArray[np.int64], ridge: float = RIDGE) -> Fit:
    """Fit (V, F) features to (V,) outcomes in [0, 1] by Newton, with errors clustered by (V,) groups.

    Raises:
        VoteError: ``ridge`` is not above 0.
    """
    if not ridge > 0:
        raise VoteError(f"ridge is {ridge}; it must be above 0, or few votes give weights without end")
    w, hessian = newton(x, y, ridge)
    p = _sigmoid(x @ w)
    scores = np.zeros((int(group.max()) + 1, x.shape[1]))
    np.add.at(scores, group, x * (y - p)[:, None])
    g = len(np.unique(group))
    inverse = np.linalg.inv(hessian)
    covariance = inverse @ (scores.T @ scores * g / (g - 1)) @ inverse
    return Fit(weights=w, errors=np.sqrt(np.maximum(np.diag(covariance), 0.0)), separated=separated(x, y))


def separated(x: Floats, y: Floats) -> bool:
    """Whether some weights tell all decided ones of (V,) outcomes from (V, F) features."""
    decided = y != 0.5
    if not decided.any():
        return False
    w, _ = newton(x[decided], y[decided], NEARLY_NONE)
    return bool(((2 * y - 1) * (x @ w))[decided].min() > 0)


def newton(x: Floats, y: Floats, ridge: float) -> tuple[Floats, Floats]:
    """Weights (F,) of largest posterior and the curvature (F, F) there; see ``logistic``."""
    w, prior = np.zeros(x.shape[1]), ridge * np.eye(x.shape[1])
    for _ in range(_STEPS):
        p = _sigmoid(x @ w)
        hessian = (x * (p * (1 - p))[:, None]).T @ x + prior
        step = np.linalg.solve(hessian, x.T @ (y - p) - ridge * w)
        # Far from the top the curvature is almost flat and a full step would leap over it.
        w = w + step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < 1e-10:
            break
    return w, hessian


def _sigmoid(z: Floats) -> Floats:
    out: Floats = 0.5 * (1 + np.tanh(z / 2))
    return out


def _interval(fit: Fit, i: int) -> Interval:
    value, error = float(fit.weights[i]), float(fit.errors[i])
    half = NormalDist().inv_cdf(1 - ALPHA / 2) * error
    return Interval(value=value, low=value - half, high=value + half)


def _few(prompts: Sized, weights: Sized) -> list[str]:
    """Say where clusters are too few: the clustered covariance then has no full rank, and is too small."""
    if len(prompts) > len(weights) + 1:
        return []
    return [
        f"{len(prompts)} prompts for {len(weights)} features: intervals are too narrow; collect votes "
        "on more prompts, or explain by fewer features"
    ]


def _warnings(fit: Fit, weights: Sequence[Weight], decided: int, ridge: float) -> list[str]:
    if fit.separated:
        return [
            f"the features predict all {decided} decided votes (separation): weights are only as large as "
            f"the ridge of {ridge:g} lets them be, and their intervals mean nothing; collect more votes, or "
            "explain by fewer features"
        ]
    huge = [w.name for w in weights if abs(w.weight.value) > HUGE]
    return (
        [f"{', '.join(huge)}: a weight this large comes of near separation; collect more votes"]
        if huge
        else []
    )
