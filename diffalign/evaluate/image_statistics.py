"""Plain numbers of pictures: a model that drifts in them has learnt to please a scorer, not people."""

from __future__ import annotations

import torch
from torch import Tensor

NAMES = ("brightness", "contrast", "saturation", "colourfulness", "sharpness", "high_frequency")
CUT = 0.25
"""Cycles per pixel from which energy counts as of high frequency, half of what a picture can hold."""
_LUMA = (0.299, 0.587, 0.114)  # Rec. 601


def image_statistics(x01: Tensor) -> dict[str, Tensor]:
    """Measure (B, 3, H, W) pictures in [0, 1].

    Returns:
        (B,) float64 each: ``brightness`` and ``contrast`` (mean and s.d. of luma, in [0, 1]), ``saturation``
        (mean of HSV, in [0, 1]), ``colourfulness`` (Hasler and Suesstrunk 2003, eq. 3, on the scale of 0 to
        255), ``sharpness`` (mean length of the gradient of luma, per pixel) and ``high_frequency`` (share of
        luma's energy, its mean aside, above CUT).

    Raises:
        ValueError: another shape, or pictures of less than 4 pixels a side.
    """
    if x01.ndim != 4 or x01.shape[1] != 3 or min(x01.shape[2:]) < 4:
        raise ValueError(f"pictures have shape {tuple(x01.shape)}: expected (B, 3, H, W) of 4 pixels or more")
    x = x01.double()
    luma = torch.einsum("bchw,c->bhw", x, torch.tensor(_LUMA, dtype=x.dtype, device=x.device))
    top, low = x.amax(1), x.amin(1)
    return {
        "brightness": luma.mean((1, 2)),
        "contrast": luma.flatten(1).std(1, correction=0),
        "saturation": ((top - low) / top.clamp(min=1e-6)).mean((1, 2)),
        "colourfulness": _colourfulness(x * 255),
        "sharpness": _gradient(luma),
        "high_frequency": _high_frequency(luma),
    }


def _colourfulness(x: Tensor) -> Tensor:
    red, green, blue = x.flatten(2).unbind(1)
    axes = torch.stack([red - green, (red + green) / 2 - blue], 1)  # (B, 2, N)
    spread, mean = axes.std(2, correction=0).norm(dim=1), axes.mean(2).norm(dim=1)
    out: Tensor = spread + 0.3 * mean
    return out


def _gradient(luma: Tensor) -> Tensor:
    dx = luma[:, :-1, 1:] - luma[:, :-1, :-1]
    dy = luma[:, 1:, :-1] - luma[:, :-1, :-1]
    out: Tensor = (dx.square() + dy.square()).sqrt().mean((1, 2))
    return out


def _high_frequency(luma: Tensor) -> Tensor:
    """0 for a picture of one colour, which has no energy."""
    h, w = luma.shape[1:]
    energy = torch.fft.rfft2(luma - luma.mean((1, 2), keepdim=True)).abs().square()
    column = torch.full((w // 2 + 1,), 2.0, dtype=luma.dtype, device=luma.device)
    column[0] = 1.0  # the others stand for their mirror image too
    if w % 2 == 0:
        column[-1] = 1.0
    energy = energy * column
    fy, fx = (torch.fft.fftfreq(h), torch.fft.rfftfreq(w))
    high = (fy[:, None].square() + fx.square()).sqrt().to(luma.device) >= CUT
    total: Tensor = energy.sum((1, 2))
    return torch.where(total > 1e-12, (energy * high).sum((1, 2)) / total.clamp(min=1e-12), 0.0)
