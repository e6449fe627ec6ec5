"""How likely each label is true where some were flipped: EM over the flip rate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from diffalign.data.records import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

RIDGE = 1e-2
"""Penalty on the calibration, so that data which the scorers separate wholly keep a finite one."""
LEAST = 20
"""Pairs below which nothing is estimated."""


def flip_posterior(
    gaps: Array, labels: Array, *, rounds: int = 200, tolerance: float = 1e-6
) -> tuple[Array, float]:
    """Probability that the first image is truly the better one, given its label and the scorers' gaps.

    Model: the first image is better with probability q = sigmoid(a . gap), and the label says so, or with
    probability e the opposite (logistic regression with label noise; Raykar et al. 2010, JMLR 11). EM
    estimates the calibration a, which makes the scorers' gaps probabilities, and the flip rate e < 1/2
    together. Scores are whole-picture opinions; a loss at one time and noise is no such thing.

    Args:
        gaps: (n, K) score gaps, first minus second image, each in units of about 1.
        labels: (n,) given probability that the first image wins, 0 to 1.
        rounds: EM steps at most.
        tolerance: change of the flip rate at which it ends.

    Returns:
        (n,) posterior, and the flip rate in [0, 0.5).

    Raises:
        DataError: fewer than 20 pairs, or a label outside [0, 1].
    """
    if len(gaps) < LEAST:
        raise DataError(f"{len(gaps)} pairs with a winner; a flip rate can be estimated from {LEAST} or more")
    if not ((labels >= 0) & (labels <= 1)).all():
        raise DataError("a label is outside [0, 1]")
    a, e = calibrate(gaps, labels), 0.1
    for _ in range(rounds):
        q = _sigmoid(gaps @ a)
        p = bayes(q, labels, e)
        a = calibrate(gaps, p)
        wrong = labels * (1 - p) + (1 - labels) * p
        before, e = e, float(np.clip(wrong.mean(), 0, 0.499))
        if abs(e - before) < tolerance:
            break
    return bayes(_sigmoid(gaps @ a), labels, e), e


def bayes(q: Array, labels: Array, e: float) -> Array:
    """Posterior of "the first is better" from prior q, a label that is flipped at rate e; (n,) each.

    A label y in (0, 1) is the mean of a label 1 and a label 0 with weights y and 1 - y.
    """
    yes = q * (1 - e) / np.maximum(q * (1 - e) + (1 - q) * e, 1e-300)
    no = q * e / np.maximum(q * e + (1 - q) * (1 - e), 1e-300)
    out: Array = labels * yes + (1 - labels) * no
    return out


def calibrate(gaps: Array, targets: Array, *, steps: int = 30) -> Array:
    """(K,) weights a that make sigmoid(gaps . a) fit (n,) probabilities: logistic regression by Newton.

    There is no intercept: which image comes first does not matter.
    """
    a = np.zeros(gaps.shape[1])
    for _ in range(steps):
        q = _sigmoid(gaps @ a)
        gradient = gaps.T @ (targets - q) - RIDGE * a
        hessian = (gaps * (q * (1 - q))[:, None]).T @ gaps + RIDGE * np.eye(len(a))
        step = np.linalg.solve(hessian, gradient)
        a = a + step * min(1.0, 2.0 / max(np.abs(step).max(), 1e-12))  # no leap where it is nearly flat
        if np.abs(step).max() < 1e-9:
            break
    return a


def _sigmoid(x: Array) -> Array:
    out: Array = 0.5 * (1 + np.tanh(x / 2))
    return out
