"""Factors w(t) on errors, as recipes state them: a name, or a block with the name and its options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from diffalign.diffusion.process import Process, WeightName


@dataclass(frozen=True, kw_only=True)
class MinSnr:
    """Errors of x0 weighed by min(SNR, gamma) (arXiv:2303.09556)."""

    name: Literal["min_snr"] = "min_snr"
    gamma: float = 5.0
    """Signal-to-noise ratio above which weights no longer grow."""

    def __post_init__(self) -> None:
        """Check the range."""
        if not self.gamma > 0:
            raise ValueError(f"gamma is {self.gamma}; it must be above 0 (5 is usual)")


@dataclass(frozen=True, kw_only=True)
class Sigmoid:
    """Errors of eps weighed by sigmoid(b - log SNR), so that clean times fade (arXiv:2303.00848)."""

    name: Literal["sigmoid"] = "sigmoid"
    b: float = 0.0
    """Log SNR at which the weight is one half; larger values let cleaner times in."""


@dataclass(frozen=True, kw_only=True)
class Discount:
    """Errors weighed by 50 gamma^k / sum gamma^j, k the denoising step of 50 (arXiv:2402.08265)."""

    name: Literal["discount"] = "discount"
    gamma: float = 0.9
    """Discount of each further denoising step, in (0, 1]; 1 weighs all times alike."""

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma is {self.gamma}; it must be in (0, 1]")


ErrorWeight = WeightName | MinSnr | Sigmoid | Discount
"""What a recipe says under error_weight: a name, or ``{name: sigmoid, b: -1}``."""


def error_weight(weight: ErrorWeight, process: Process, t: Tensor) -> Tensor | None:
    """(B,) factors at (B,) times; None where all are 1."""
    if weight == "one":
        return None
    if isinstance(weight, Sigmoid):
        return process.weight(t, weight.name, b=weight.b)
    if isinstance(weight, MinSnr | Discount):
        return process.weight(t, weight.name, weight.gamma)
    return process.weight(t, weight)
