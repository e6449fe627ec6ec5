"""Pairs of the candidates that were drawn from one latent: LPO's and SPO's rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Mined:
    """Best and worst candidate of N latents."""

    win: Tensor
    """(N,) int64 candidate with the highest score."""
    lose: Tensor
    """(N,) int64 candidate with the lowest score."""
    keep: Tensor
    """(N,) bool, whether the two are far enough apart; never where they are equal."""


def mine(scores: Tensor, threshold: Tensor | float) -> Mined:
    """Best and worst of (K, N) candidate scores, kept where p_win - p_lose > threshold (arXiv:2502.01051).

    p is the softmax over those two scores alone, in the units of the scorer's own logits.

    Args:
        scores: (K, N) scores of K candidates of N latents; rows with a non-finite score are not kept.
        threshold: (N,) or one number in [0, 1).
    """
    finite = scores.isfinite().all(0)
    held = torch.where(finite, scores, torch.zeros_like(scores))
    (high, win), (low, lose) = held.max(0), held.min(0)
    lead = torch.tanh((high - low) / 2)  # sigma(d) - sigma(-d)
    return Mined(win=win, lose=lose, keep=finite & (lead > threshold) & (high > low))


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """What p_win - p_lose must exceed at each step: low at the cleanest, high at the noisiest."""

    low: float = 0.35
    """At the step with the least noise; 0.35 for SD1.5, 0.45 for SDXL; SPO has one number, 0.3 and 0.4."""
    high: float = 0.5
    """At the step with the most noise; 0.5 for SD1.5, 0.6 for SDXL."""
    by: Literal["sigma", "variance", "linear"] = "sigma"
    """What it grows with: the step's standard deviation, its square, or the number of the step."""

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0 <= self.low <= self.high < 1:
            raise ValueError(
                f"threshold.low and high are {self.low} and {self.high}; 0 <= low <= high < 1 is needed"
            )

    def table(self, std: Tensor) -> Tensor:
        """(S,) thresholds of the S steps of a schedule, noisiest first, by their (S,) standard deviations.

        Args:
            std: of the transition, ``Sampler.std``; steps without noise draw no candidates.
        """
        kinds = {"sigma": std, "variance": std.square(), "linear": torch.arange(len(std), 0, -1).to(std)}
        value = kinds[self.by]
        span = (value.max() - value.min()).clamp(min=torch.finfo(value.dtype).tiny)
        return self.low + (value - value.min()) / span * (self.high - self.low)
