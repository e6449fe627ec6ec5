"""How often a scorer agrees with people, when both may call a tie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

THRESHOLDS = tuple(round(0.1 * i, 1) for i in range(11))
"""Thresholds that PickScore's evaluation tries on its validation split."""


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Agreement of a scorer with votes."""

    accuracy: float
    """Tie-aware: 1 same, 0.5 if one side calls a tie, 0 opposite."""
    decided: float
    """Share of the votes other than ties whose preferred picture scores higher; equal scores count 0.5."""
    threshold: float
    """A tie is predicted where |p0 - p1| is at most this."""
    votes: int
    ties: int


def tie_aware(prob_0: Tensor, label_0: Tensor, threshold: float = 0.0) -> Tensor:
    """(B,) agreement: 1 where prediction and label are the same, 0.5 where one is a tie, 0 where opposite.

    Args:
        prob_0: (B,) predicted probability that the first picture is preferred.
        label_0: (B,) 1, 0, or 0.5 for a tie; a soft label in between earns its distance to the prediction.
        threshold: a tie is predicted where |prob_0 - prob_1| is at most this. In [0, 1].
    """
    gap = 2 * prob_0 - 1
    predicted = torch.where(gap.abs() <= threshold, 0.5, (gap > 0).to(gap.dtype))
    return 1 - (predicted - label_0).abs()


def best_threshold(prob_0: Tensor, label_0: Tensor, thresholds: Sequence[float] = THRESHOLDS) -> float:
    """Threshold with the best mean agreement; choose it on a validation split, never on what is reported."""
    return max(thresholds, key=lambda t: float(tie_aware(prob_0, label_0, t).mean()))


def measure(prob_0: Tensor, label_0: Tensor, threshold: float | None = None) -> Accuracy:
    """Agreement of probabilities (N,) with labels (N,); ``threshold=None`` chooses it on these labels."""
    if threshold is None:
        threshold = best_threshold(prob_0, label_0)
    tie = label_0 == 0.5
    right = torch.where(prob_0 == 0.5, 0.5, ((prob_0 > 0.5) == (label_0 > 0.5)).float())[~tie]
    return Accuracy(
        accuracy=float(tie_aware(prob_0, label_0, threshold).mean()),
        decided=float(right.mean()) if len(right) else math.nan,
        threshold=threshold,
        votes=len(label_0),
        ties=int(tie.sum()),
    )
