"""What to ask somebody new: the pair whose answer says most about the person.

A person's taste is weights w on features of pictures, P(first wins) = sigma(w . x) with differences x, known
as a normal belief. The expected information of an answer is the mutual information of answer and weights
(BALD; Houlsby et al. 2011, arXiv:1112.5745),

    I = H(E_w p) - E_w H(p),

large where the belief's members are sure and disagree, and not where everybody would toss a coin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffalign.evaluate.stats import Floats
from diffalign.votes.choose import entropy
from diffalign.votes.explain import RIDGE, newton

SAMPLES = 512
_STEPS = 100


@dataclass(frozen=True, kw_only=True)
class Belief:
    """Normal distribution of somebody's weights."""

    mean: Floats
    """(F,)"""
    covariance: Floats
    """(F, F)"""

    def sample(self, count: int, rng: np.random.Generator) -> Floats:
        """(count, F) weights."""
        root = np.linalg.cholesky(self.covariance + 1e-12 * np.eye(len(self.mean)))
        out: Floats = self.mean + rng.normal(size=(count, len(self.mean))) @ root.T
        return out


def vague(features: int, spread: float = 1.0) -> Belief:
    """Belief about somebody of whom, and of whose kind, nothing is known: N(0, spread^2)."""
    return Belief(mean=np.zeros(features), covariance=spread**2 * np.eye(features))


def of_people(
    votes: Sequence[tuple[Floats, Floats]], *, ridge: float = RIDGE, least: int = 3
) -> Belief | None:
    """Belief about somebody new from what others voted: mean and covariance of their weights.

    The covariance holds what weights are unsure of as well, and is widened where people are few.

    Args:
        votes: for each person (V, F) differences and (V,) outcomes.
        ridge: precision of the prior on each person's weights.
        least: how few people with votes are not enough.

    Returns:
        None where there are not enough people.
    """
    fits = [newton(x, y, ridge) for x, y in votes if len(y)]
    if len(fits) < least:
        return None
    weights = np.stack([w for w, _ in fits])  # (U, F)
    unsure = np.mean([np.linalg.inv(h) for _, h in fits], axis=0)
    spread = weights.T @ weights / len(weights) - np.outer(weights.mean(0), weights.mean(0))
    widened = spread * len(weights) / (len(weights) - 1) + unsure / len(weights)
    return Belief(mean=weights.mean(0), covariance=widened + 1e-3 * np.eye(len(widened)))


def learn(belief: Belief, x: Floats, y: Floats) -> Belief:
    """Belief after votes: (V, F) differences and (V,) outcomes, 0.5 for a tie; Laplace's approximation."""
    if not len(y):
        return belief
    precision = np.linalg.inv(belief.covariance)
    w = belief.mean.copy()
    for _ in range(_STEPS):
        p = _sigmoid(x @ w)
        hessian = (x * (p * (1 - p))[:, None]).T @ x + precision
        step = np.linalg.solve(hessian, x.T @ (y - p) - precision @ (w - belief.mean))
        # Far from the top the curvature is almost flat and a full step would leap over it.
        w = w + step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < 1e-10:
            break
    return Belief(mean=w, covariance=np.linalg.inv(hessian))


def expected_information(chance: Floats) -> Floats:
    """(N,) information in nats, 0 to log 2, from (S, N) chances of the first side by S sampled weights."""
    out: Floats = np.maximum(entropy(chance.mean(0)) - entropy(chance).mean(0), 0.0)
    return out


def rank(
    belief: Belief, x: Floats, *, rng: np.random.Generator | int = 0, samples: int = SAMPLES
) -> tuple[Floats, list[int]]:
    """Expected information of asking each of (N, F) pairs, and their numbers, the most telling first."""
    weights = belief.sample(samples, np.random.default_rng(rng))
    value = expected_information(_sigmoid(weights @ x.T))
    return value, np.argsort(-value, kind="stable").tolist()


def next_pair(
    belief: Belief, x: Floats, asked: Sequence[int] = (), *, rng: np.random.Generator | int = 0
) -> int:
    """Number of the pair among (N, F) differences to ask next.

    Raises:
        ValueError: all were asked, or features that are not finite.
    """
    if not np.isfinite(x).all():
        raise ValueError("differences of pairs are not all finite: leave out pairs without features")
    done = set(asked)
    left = [i for i in rank(belief, x, rng=rng)[1] if i not in done]
    if not left:
        raise ValueError(f"all {len(x)} pairs were asked: generate more pictures")
    return left[0]


def _sigmoid(z: Floats) -> Floats:
    out: Floats = 0.5 * (1 + np.tanh(z / 2))
    return out
