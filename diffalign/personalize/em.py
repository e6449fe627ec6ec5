"""Tastes found in votes that carry no user id: a mixture of Bradley-Terry heads, fitted by EM.

P(y | x, session) = sum_k pi_k prod_v sigma(w_k . x_v)^y_v (1 - sigma(w_k . x_v))^(1 - y_v), with differences
x of features between the two sides (as EM finds clusters of people in MaxMin-RLHF, arXiv:2402.08925, and as
mixtures of Bradley-Terry heads explain context-free votes in MiCRo, 2025). Votes of a session are of one
person; where there are no sessions each vote stands alone, and many are needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffalign.evaluate.stats import Floats

Integers = NDArray[np.int64]
RIDGE = 0.1
_NEWTON = 50


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """A fit of K heads."""

    heads: Floats
    """(K, F) weights, the head of the largest share first."""
    shares: Floats
    """(K,) pi, of sum 1."""
    responsibility: Floats
    """(S, K) probability that each session is of each taste."""
    objective: Floats
    """Penalised log-likelihood after each round: it never falls."""

    def predict(self, x: Floats) -> Floats:
        """(V,) probability that the first side of someone unknown's vote wins, for (V, F) differences."""
        out: Floats = _sigmoid(x @ self.heads.T) @ self.shares
        return out


def mixture(
    x: Floats,
    y: Floats,
    session: Integers,
    heads: int,
    *,
    ridge: float = RIDGE,
    restarts: int = 8,
    rounds: int = 200,
    seed: int = 0,
) -> Mixture:
    """Fit a mixture; of several random starts the likeliest is kept.

    Args:
        x: (V, F) differences of features, first side less second, of about unit scale.
        y: (V,) 1 where the first side won, 0.5 for a tie, 0 where the second did.
        session: (V,) numbers; votes of one number are of one person.
        heads: K, how many tastes.
        ridge: precision of the prior on weights, above 0.
        restarts: random starts.
        rounds: most rounds of EM for each start.
        seed: of the starts.

    Raises:
        ValueError: no votes, shapes that differ, fewer sessions than heads, or an option out of range.
    """
    if x.ndim != 2 or not len(x) or {len(y), len(session)} != {len(x)}:
        raise ValueError(
            f"votes have shapes {x.shape}, {y.shape} and {session.shape}; one row for each is needed"
        )
    sessions, place = np.unique(session, return_inverse=True)
    if not 1 <= heads <= len(sessions) or not ridge > 0 or min(restarts, rounds) < 1:
        raise ValueError(
            f"{heads} heads, {len(sessions)} sessions, ridge {ridge}: heads must be at most as many as "
            "sessions, ridge above 0, restarts and rounds at least 1"
        )
    rng = np.random.default_rng(seed)
    starts = [rng.dirichlet(np.ones(heads), len(sessions)) for _ in range(restarts if heads > 1 else 1)]
    return max((_em(x, y, place, r, ridge, rounds) for r in starts), key=lambda m: m.objective[-1])


def _em(x: Floats, y: Floats, place: Integers, r: Floats, ridge: float, rounds: int) -> Mixture:
    """EM from (S, K) responsibilities."""
    w, trace = np.zeros((r.shape[1], x.shape[1])), []
    for _ in range(rounds):
        shares = r.mean(0)
        w = np.stack([_head(x, y, r[place, k], ridge, w[k]) for k in range(len(w))])
        joint = np.log(np.maximum(shares, 1e-300)) + _by_session(x, y, place, w, len(r))  # (S, K)
        top = joint.max(1, keepdims=True)
        total = top[:, 0] + np.log(np.exp(joint - top).sum(1))
        r = np.exp(joint - total[:, None])
        trace.append(total.sum() - 0.5 * ridge * (w**2).sum())
        if len(trace) > 1 and trace[-1] - trace[-2] < 1e-9 * abs(trace[-1]):
            break
    order = np.argsort(-shares, kind="stable")
    return Mixture(
        heads=w[order], shares=shares[order], responsibility=r[:, order], objective=np.array(trace)
    )


def _by_session(x: Floats, y: Floats, place: Integers, w: Floats, sessions: int) -> Floats:
    """(S, K) log-likelihood of each session's votes under each head."""
    z = x @ w.T  # (V, K)
    each = y[:, None] * z - np.logaddexp(0, z)
    out = np.zeros((sessions, len(w)))
    np.add.at(out, place, each)
    return out


def _head(x: Floats, y: Floats, weight: Floats, ridge: float, w: Floats) -> Floats:
    """Weights (F,) of largest posterior for votes that count ``weight`` (V,), by Newton from ``w``."""
    for _ in range(_NEWTON):
        p = _sigmoid(x @ w)
        hessian = (x * (weight * p * (1 - p))[:, None]).T @ x + ridge * np.eye(len(w))
        step = np.linalg.solve(hessian, x.T @ (weight * (y - p)) - ridge * w)
        # Far from the top the curvature is almost flat and a full step would leap over it.
        w = w + step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < 1e-10:
            break
    return w


def _sigmoid(z: Floats) -> Floats:
    out: Floats = 0.5 * (1 + np.tanh(z / 2))
    return out
