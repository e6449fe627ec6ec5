"""What brings the scores of different scorers to one scale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


class Normaliser(Protocol):
    """What brings scores of one scorer to a scale; must not fall anywhere, so that order is kept."""

    def __call__(self, score: Tensor) -> Tensor:
        """(B,) scores to (B,) others; differentiable."""
        ...


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Leaves scores as they are."""

    def __call__(self, score: Tensor) -> Tensor:
        """See Normaliser."""
        return score


@dataclass(frozen=True, kw_only=True)
class ZScore:
    """(score - mean) / std, measured beforehand: of the batch itself, scores would hang on each other."""

    mean: float
    std: float

    def __post_init__(self) -> None:
        """Check the deviation.

        Raises:
            ValueError: not above 0.
        """
        if not self.std > 0:
            raise ValueError(f"std is {self.std}; a scorer that always says the same cannot be normalised")

    @classmethod
    def of(cls, score: Tensor) -> ZScore:
        """Mean and standard deviation (ddof 1) of (N,) scores, N at least 2."""
        x = score.detach().double()
        return cls(mean=float(x.mean()), std=float(x.std()))

    def __call__(self, score: Tensor) -> Tensor:
        """See Normaliser."""
        return (score - self.mean) / self.std


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Cuts scores, so that no part can buy off the others; outside there is no gradient."""

    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        """Check the order.

        Raises:
            ValueError: low is not below high.
        """
        if not self.low < self.high:
            raise ValueError(f"clip from {self.low} to {self.high}: low must be below high")

    def __call__(self, score: Tensor) -> Tensor:
        """See Normaliser."""
        return score.clamp(self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class Chain:
    """One normaliser after the other."""

    steps: tuple[Normaliser, ...]

    def __call__(self, score: Tensor) -> Tensor:
        """See Normaliser."""
        for step in self.steps:
            score = step(score)
        return score


def normaliser_of(row: Mapping[str, Any]) -> Normaliser:
    """Normaliser of a part's options: ``zscore`` (mean, std), then ``clip`` (low, high; null is no bound)."""
    steps: list[Normaliser] = []
    if "zscore" in row:
        mean, std = row["zscore"]
        steps.append(ZScore(mean=float(mean), std=float(std)))
    if "clip" in row:
        low, high = (math.nan if v is None else float(v) for v in row["clip"])
        steps.append(
            Clip(low=-math.inf if math.isnan(low) else low, high=math.inf if math.isnan(high) else high)
        )
    return Chain(steps=tuple(steps)) if steps else Identity()
