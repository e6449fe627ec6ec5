"""What an error is. Today: the native space of the model's prediction."""

from __future__ import annotations

from torch import Tensor


def native_error(pred: Tensor, target: Tensor) -> Tensor:
    """(N,) mean squared error over all elements of (N, C, ..., H, W) predictions.

    Half-precision inputs are raised to fp32 first (a sum of 16,384 squares in bf16 keeps two digits); float64
    stays.
    """
    wide = pred if pred.element_size() >= 4 else pred.float()
    return (wide - target.to(wide.dtype)).square().flatten(1).mean(1)
