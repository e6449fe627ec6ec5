"""Errors that count where a rater pointed: weight maps over the picture."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def region_error(squared: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of squared errors; with a constant map it is the plain mean.

    e = sum_chw(m s) / (C sum_hw m), so that the size of a marked region does not change the scale of e and
    beta keeps its meaning.

    Args:
        squared: (N, C, H, W) squared errors, in fp32 or wider (see ``native_error``).
        weights: (N, 1, H, W) weights m of at least 0, on the grid of ``squared``.

    Returns:
        (N,) errors; 0 for a row whose map is 0 everywhere.

    Raises:
        ValueError: the shapes do not fit.
    """
    rows, channels, height, width = squared.shape
    if weights.shape != (rows, 1, height, width):
        wanted = (rows, 1, height, width)
        raise ValueError(f"the weight map is {tuple(weights.shape)}; it must be {wanted}: see to_grid")
    m = weights.to(squared.dtype)
    mass = channels * m.flatten(1).sum(1)  # (N,)
    total = (m * squared).flatten(1).sum(1)
    return torch.where(mass > 0, total / torch.where(mass > 0, mass, torch.ones_like(mass)), 0 * total)


def to_grid(mask: Tensor, height: int, width: int, outside: float = 0.0) -> Tensor:
    """Bring a map of pixels to the latent's grid.

    Args:
        mask: (N, 1, H, W) values in [0, 1], 1 where the rater marked.
        height: rows of the latent.
        width: columns of the latent.
        outside: weight of what was not marked, in [0, 1].

    Returns:
        (N, 1, height, width) weights: the share of each cell that is marked, raised to ``outside``.

    Raises:
        ValueError: ``outside`` is not in [0, 1].
    """
    if not 0 <= outside <= 1:
        raise ValueError(f"outside is {outside}; it must be in [0, 1]")
    return outside + (1 - outside) * F.adaptive_avg_pool2d(mask, (height, width))
