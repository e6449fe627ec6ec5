"""What the objectives on single liked and disliked images share."""

from __future__ import annotations

import torch
from torch import Tensor

from diffalign.objectives.base import Denoised, Metrics


def liked(batch: Denoised) -> Tensor:
    """(N,) probability that an image is liked: the soft label, else 1, 0, or 1/2 where it is not known."""
    p = 0.5 * (batch.role + 1) if batch.soft is None else batch.soft
    return p.to(batch.error.dtype)


def label_metrics(batch: Denoised, score: Tensor) -> Metrics:
    """(N,) metrics: shares of likes and dislikes, and gap, error and score of each kind (NaN at the other).

    Args:
        batch: errors of N rows.
        score: (N,) beta s, positive where the policy fits the image better than the reference does.
    """
    like, dislike = batch.role > 0, batch.role < 0
    gap, error, score = batch.gap().detach(), batch.error.detach(), score.detach()
    return {
        "likes": like.to(error.dtype),
        "dislikes": dislike.to(error.dtype),
        "win_gap": _at(like, gap),
        "lose_gap": _at(dislike, gap),
        "error_win": _at(like, error),
        "error_lose": _at(dislike, error),
        "score_like": _at(like, score),
        "score_dislike": _at(dislike, score),
    }


def _at(where: Tensor, values: Tensor) -> Tensor:
    return torch.where(where, values, float("nan"))
