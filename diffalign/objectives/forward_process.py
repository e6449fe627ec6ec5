"""What objectives on noised pictures of a rollout share (``Denoised`` with advantage and predictions)."""

from __future__ import annotations

from torch import Tensor

from diffalign.objectives.base import Denoised, Predictions
from diffalign.objectives.steps import given


def predictions(batch: Denoised) -> Predictions:
    """Prediction tensors of a batch.

    Raises:
        ValueError: it has none.
    """
    if batch.tensors is None:
        raise ValueError("the batch has no tensors, the predictions that this loss is made of")
    return batch.tensors


def advantage(batch: Denoised, adv_max: float) -> Tensor:
    """(N,) advantages (the field ``score``), cut at ``adv_max``.

    Raises:
        ValueError: the batch has none.
    """
    return given(batch.score, "score, the advantage", "which weighs the pictures").clamp(-adv_max, adv_max)


def further(batch: Denoised, name: str) -> Tensor:
    """An ``extra`` tensor of a batch.

    Raises:
        ValueError: it is missing.
    """
    return given(batch.extra.get(name), f"extra[{name!r}]", "which this loss is made of")


def mean_square(value: Tensor) -> Tensor:
    """(N,) mean square over the elements of (N, C, ..., H, W)."""
    return value.square().flatten(1).mean(1)


def reference_distance(batch: Denoised) -> Tensor:
    """(N,) <(pred - pred_ref)^2>: on flow models the KL to the reference up to a factor.

    Raises:
        ValueError: the batch has no predictions, or none of the reference.
    """
    own = predictions(batch)
    return mean_square(own.pred - given(own.ref_pred, "tensors.ref_pred", "the distance to the reference"))


def self_normalised(difference: Tensor) -> Tensor:
    """(N,) <d^2> / max(<|d|>, 1e-5), the denominator without gradient: a loss of even size at all noises."""
    size = difference.detach().double().abs().flatten(1).mean(1).clamp(min=1e-5).to(difference.dtype)
    return mean_square(difference) / size


def same_group(group: Tensor) -> Tensor:
    """(N, N) bool, whether two rows are images of one prompt (a row and itself included)."""
    return group[:, None] == group
