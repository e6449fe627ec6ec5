"""Win rate at equal covariates: does a model win because of its prompts, or because it is more saturated?

Paired outcomes are regressed on the differences of covariates between both pictures (logistic regression);
the sigmoid of the intercept is the win rate of pairs that do not differ in them. A judge that likes
saturation then gives one half to a model that has nothing but more of it (the idea of length-controlled
AlpacaEval, Dubois et al. 2024, arXiv:2404.04475).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffalign.evaluate.stats import Floats, Interval

RIDGE = 1e-3
"""Of the standardised slopes, so that separation has an answer; the intercept has none."""
_STEPS = 100


class ControlError(ValueError):
    """Covariates that cannot be controlled for; the message says which and why."""


@dataclass(frozen=True, kw_only=True)
class Logistic:
    """A logistic regression with standard errors clustered by group."""

    coefficients: Floats
    """(K,)."""
    covariance: Floats
    """(K, K), of the clustered sandwich, with the correction G / (G - 1)."""


def logistic(x: Floats, y: Floats, groups: Floats, ridge: Floats) -> Logistic:
    """Fit (N,) outcomes in [0, 1] to (N, K) columns by maximum likelihood under a ridge, by Newton.

    Args:
        x: columns, the intercept among them.
        y: outcomes; a tie is 0.5, half a win and half a loss.
        groups: (N,) number of the prompt; at least two of them.
        ridge: (K,) precision of each coefficient's prior about 0, per observation.

    Raises:
        ControlError: columns that depend on each other, or outcomes that are all alike.
    """
    beta, penalty = np.zeros(x.shape[1]), ridge * len(y)
    for _ in range(_STEPS):
        p = _sigmoid(x @ beta)
        slope = x.T @ (y - p) - penalty * beta
        bread = _information(x, p, penalty)
        step = np.linalg.solve(bread, slope)
        beta = beta + step / max(1.0, float(np.abs(step).max()))
        if float(np.abs(step).max()) < 1e-10:
            return Logistic(coefficients=beta, covariance=_sandwich(x, y, beta, groups, penalty))
    raise ControlError("the regression does not settle: the model wins, or loses, nearly every pair")


def _information(x: Floats, p: Floats, penalty: Floats) -> Floats:
    found: Floats = (x * (p * (1 - p))[:, None]).T @ x + np.diag(penalty)
    if np.linalg.cond(found) > 1e12:
        raise ControlError(
            "covariates determine each other, or the outcomes are all alike: leave out some of --control"
        )
    return found


def _sandwich(x: Floats, y: Floats, beta: Floats, groups: Floats, penalty: Floats) -> Floats:
    p = _sigmoid(x @ beta)
    bread = np.linalg.inv(_information(x, p, penalty))
    _, number = np.unique(groups, return_inverse=True)
    scores = np.zeros((number.max() + 1, x.shape[1]))
    np.add.at(scores, number.reshape(-1), x * (y - p)[:, None])
    g = len(scores)
    out: Floats = bread @ (scores.T @ scores) @ bread * (g / (g - 1))
    return out


def win_rate_at_equal(outcomes: Floats, differences: dict[str, Floats], quantile: float) -> Interval:
    """Win rate of pairs whose covariates are equal.

    Args:
        outcomes: (P, S), 1 for a win, 0.5 for a tie, 0 for a loss.
        differences: (P, S) by covariate, model minus base.
        quantile: of Student's t (or the normal) for the interval's half-width in standard errors.

    Raises:
        ControlError: a covariate that never differs, ones that determine each other, one prompt only, or
            outcomes that are all alike.
    """
    if len(outcomes) < 2:
        raise ControlError(f"{len(outcomes)} prompt is not enough for an interval: give at least 2")
    columns = [np.ones(outcomes.size)]
    for name, values in differences.items():
        scale = float(np.sqrt(np.mean(values**2)))
        if not scale > 0:
            raise ControlError(f"{name} is equal in all pairs, so there is nothing to control: leave it out")
        columns.append(values.ravel() / scale)  # not centred: 0 stays "equal"
    groups = np.repeat(np.arange(len(outcomes), dtype=float), outcomes.shape[1])
    ridge = np.array([0.0] + [RIDGE] * len(differences))
    fit = logistic(np.stack(columns, 1), outcomes.ravel(), groups, ridge)
    middle, error = float(fit.coefficients[0]), float(np.sqrt(fit.covariance[0, 0]))
    value, low, high = (float(_sigmoid(np.array(middle + k * quantile * error))) for k in (0, -1, 1))
    return Interval(value=value, low=low, high=high)


def _sigmoid(z: Floats) -> Floats:
    out: Floats = 0.5 * (1 + np.tanh(z / 2))
    return out
