"""How often a scorer agrees with people, by all four definitions in use, and how honest its odds are."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

THRESHOLDS = tuple(round(0.1 * i, 1) for i in range(11))
"""Thresholds that PickScore's evaluation tries on its validation split."""
BINS = 10


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Agreement of a scorer with votes. The published papers use four definitions; never compare across."""

    accuracy: float
    """Tie-aware (PickScore's tests): 1 same, 0.5 if one side calls a tie, 0 opposite."""
    decided: float
    """Share of the votes other than ties whose preferred picture scores higher; equal scores count 0.5."""
    threshold: float
    """A tie is predicted where |p0 - p1| is at most this."""
    votes: int
    ties: int
    strict: float = math.nan
    """PickScore's training loop: a tie earns 0.5 for any prediction but an exact tie, which earns 0."""
    pairs_micro: float = math.nan
    """ImageReward, MPS, HPSv3: over votes other than ties, equal scores are wrong; pooled."""
    inversion_macro: float = math.nan
    """HPSv2: per prompt 1 - inversions / pairs, ties on either side are right; mean over prompts."""
    calibration_error: float = math.nan
    """Mean distance of predicted confidence and agreement over ten bins of confidence; see the function."""
    log_loss: float = math.nan
    """Mean cross-entropy of the votes in nats; ln 2 = 0.693 is that of a coin."""


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


def strict(prob_0: Tensor, label_0: Tensor) -> Tensor:
    """(B,) agreement as PickScore's training loop counts it: an exact tie of the scorer is always wrong."""
    return torch.where(prob_0 == 0.5, 0.0, tie_aware(prob_0, label_0))


def pairs_micro(prob_0: Tensor, label_0: Tensor) -> float:
    """Share of the votes other than ties that the scorer gets right, its own ties being wrong; NaN for none.

    ImageReward's and MPS's published test scripts count so. A label above 0.5 prefers the first.
    """
    right = torch.where(label_0 > 0.5, prob_0 > 0.5, prob_0 < 0.5)[label_0 != 0.5]
    return float(right.double().mean()) if len(right) else math.nan


def inversion_macro(prob_0: Tensor, label_0: Tensor, groups: Sequence[Hashable]) -> float:
    """HPSv2's accuracy: share of pairs that are not inverted, per prompt, then the mean over the prompts.

    Args:
        prob_0: (N,) predicted probability that the first picture is preferred.
        label_0: (N,) what people said; 0.5 is a tie.
        groups: prompt (or number) of each pair.
    """
    inverted = (prob_0 - 0.5).sign() * (label_0 - 0.5).sign() < 0
    number = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    place = torch.tensor([number[group] for group in groups])
    count = torch.zeros(len(number), dtype=torch.float64).index_add(0, place, torch.ones(len(place)).double())
    wrong = torch.zeros(len(number), dtype=torch.float64).index_add(0, place, inverted.double().cpu())
    return float((1 - wrong / count).mean())


def calibration_error(prob_0: Tensor, label_0: Tensor, bins: int = BINS) -> float:
    """Expected calibration error of a pair's odds, in [0, 1].

    The confidence max(p, 1 - p) in [0.5, 1] is cut into equal bins; in each, the mean confidence is held
    against the mean label of the picture that was predicted (arXiv:1706.04599, equation 3). A tie is half
    right.
    """
    confidence = torch.maximum(prob_0, 1 - prob_0).double()
    right = torch.where(prob_0 >= 0.5, label_0, 1 - label_0).double()
    place = ((confidence - 0.5) * 2 * bins).long().clamp(0, bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64).index_add(0, place, confidence - right)
    return float(gap.abs().sum() / len(prob_0))


def log_loss(prob_0: Tensor, label_0: Tensor) -> float:
    """Mean cross-entropy in nats; probabilities are kept 1e-6 away from 0 and 1."""
    p = prob_0.double().clamp(1e-6, 1 - 1e-6)
    return float(-(label_0 * p.log() + (1 - label_0) * (-p).log1p()).mean())


def best_threshold(prob_0: Tensor, label_0: Tensor, thresholds: Sequence[float] = THRESHOLDS) -> float:
    """Threshold with the best mean agreement; choose it on a validation split, never on what is reported."""
    return max(thresholds, key=lambda t: float(tie_aware(prob_0, label_0, t).mean()))


def measure(
    prob_0: Tensor,
    label_0: Tensor,
    threshold: float | None = None,
    groups: Sequence[Hashable] | None = None,
) -> Accuracy:
    """Agreement of probabilities (N,) with labels (N,), on the CPU.

    Args:
        prob_0: predicted probability that the first picture is preferred.
        label_0: what people said; 0.5 is a tie.
        threshold: of predicted ties; None chooses it on these labels.
        groups: prompt of each pair; None takes each pair for a prompt of its own.
    """
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
        strict=float(strict(prob_0, label_0).mean()),
        pairs_micro=pairs_micro(prob_0, label_0),
        inversion_macro=inversion_macro(prob_0, label_0, groups or range(len(label_0))),
        calibration_error=calibration_error(prob_0, label_0),
        log_loss=log_loss(prob_0, label_0),
    )
