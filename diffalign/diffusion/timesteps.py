"""Samplers of training times; each maps uniform numbers in [0, 1) to times, so that seeding stays with the
caller.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffalign.diffusion.discount import DENOISING_STEPS
from diffalign.diffusion.process import Process


@dataclass(frozen=True, kw_only=True)
class TimestepSampler(ABC):
    """Distribution of t."""

    @abstractmethod
    def quantile(self, u: Tensor) -> Tensor:
        """(B,) share of the whole time, in (0, 1], at (B,) uniform numbers u in [0, 1) of float64."""

    @property
    def highest(self) -> float:
        """Largest share that ``quantile`` can give."""
        return 1.0

    def times(self, u: Tensor, process: Process) -> Tensor:
        """(B,) times: int64 below T for VP, float sigma for flow."""
        share = self.quantile(u)
        if process.is_flow:
            return share.clamp(1e-4, 1.0).float()
        return (share * process.steps).long().clamp(0, process.steps - 1)


@dataclass(frozen=True, kw_only=True)
class Uniform(TimestepSampler):
    """Uniform over a range of the whole time."""

    name: Literal["uniform"] = "uniform"
    low: float = 0.0
    """Lower end, as a share of the whole time (0 is clean)."""
    high: float = 1.0
    """Upper end, as a share of the whole time (1 is pure noise)."""

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(
                f"timesteps.low and high are {self.low} and {self.high}; 0 <= low < high <= 1 is needed"
            )

    @property
    def highest(self) -> float:
        """See TimestepSampler."""
        return self.high

    def quantile(self, u: Tensor) -> Tensor:
        """See TimestepSampler."""
        return self.low + (self.high - self.low) * u


@dataclass(frozen=True, kw_only=True)
class LogitNormal(TimestepSampler):
    """Logit-normal, the habit of SD3 (arXiv:2403.03206, section 3.1)."""

    name: Literal["logit_normal"] = "logit_normal"
    mean: float = 0.0
    """Location in logit space."""
    std: float = 1.0
    """Scale in logit space."""

    def quantile(self, u: Tensor) -> Tensor:
        """See TimestepSampler."""
        z = torch.erfinv((2 * u - 1).clamp(-1 + 1e-12, 1 - 1e-12)) * math.sqrt(2)
        return torch.sigmoid(self.mean + self.std * z)


@dataclass(frozen=True, kw_only=True)
class Discrete(TimestepSampler):
    """Uniform over a list of timesteps, as few-step models need (SDXL-Turbo: 249, 499, 749, 999)."""

    name: Literal["discrete"] = "discrete"
    steps: tuple[int, ...] = (249, 499, 749, 999)
    """Timesteps out of 1000."""

    @property
    def highest(self) -> float:
        """See TimestepSampler."""
        return (max(self.steps) + 0.5) / 1000

    def quantile(self, u: Tensor) -> Tensor:
        """See TimestepSampler."""
        table = (torch.tensor(self.steps, dtype=u.dtype) + 0.5) / 1000
        return table[(u * len(self.steps)).long()]


@dataclass(frozen=True, kw_only=True)
class Discounted(TimestepSampler):
    """Early steps more often: the k-th of ``steps`` parts with probability ~ gamma^k, k = 0 noisiest.

    The sampling form of the temporal discount of arXiv:2402.08265 (its code draws k so; uniform within a
    part). ``error_weight: {name: discount}`` is the same as a weight; use one of the two.
    """

    name: Literal["discounted"] = "discounted"
    gamma: float = 0.9
    """Discount of each further denoising step, in (0, 1]; 1 is uniform."""
    steps: int = DENOISING_STEPS
    """Denoising steps of a whole trajectory."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not (0 < self.gamma <= 1 and self.steps >= 1):
            raise ValueError(
                f"timesteps.gamma is {self.gamma} and steps {self.steps}; gamma must be in (0, 1] and "
                "steps at least 1"
            )

    def quantile(self, u: Tensor) -> Tensor:
        """See TimestepSampler."""
        share = self.gamma ** torch.arange(self.steps - 1, -1, -1, dtype=u.dtype)  # from the clean end up
        upper = (share / share.sum()).cumsum(0)
        place = torch.searchsorted(upper, u, right=True).clamp(max=self.steps - 1)
        lower = upper[place] - (share / share.sum())[place]
        inside = ((u - lower) / (upper[place] - lower)).clamp(0, 1)
        return (place + inside) / self.steps


Timesteps = Uniform | LogitNormal | Discrete | Discounted
SAMPLERS: dict[str, type[TimestepSampler]] = {
    "uniform": Uniform,
    "logit_normal": LogitNormal,
    "discrete": Discrete,
    "discounted": Discounted,
}
