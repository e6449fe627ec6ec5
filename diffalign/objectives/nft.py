"""DiffusionNFT."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from diffalign.objectives.base import Denoised, Metrics, ReduceMean, State
from diffalign.objectives.forward_process import (
    advantage,
    further,
    predictions,
    reference_distance,
    self_normalised,
)
from diffalign.objectives.steps import BatchKind, OnlineObjective, given, online_objectives

Mode = Literal["all", "positive_only", "negative_only", "one_only", "binary"]


def optimality(advantages: Tensor, adv_max: float, mode: Mode = "all") -> Tensor:
    """(N,) r = clamp(A / (2 adv_max) + 1/2, 0, 1): the probability that an image is a good one.

    ``one_only`` takes 1 for a positive advantage and 0 for others, ``binary`` the sign; both are then divided
    by 2 adv_max all the same, as released, so that r stays near 1/2.
    """
    a = advantages.clamp(-adv_max, adv_max)
    chosen = {
        "all": lambda: a,
        "positive_only": lambda: a.clamp(min=0),
        "negative_only": lambda: a.clamp(max=0),
        "one_only": lambda: (a > 0).to(a.dtype),
        "binary": lambda: torch.sign(a),
    }[mode]()
    return (chosen / (2 * adv_max) + 0.5).clamp(0, 1)


@online_objectives.register("nft")
@dataclass(frozen=True, kw_only=True)
class NFT(OnlineObjective[Denoised]):
    """Negative-aware fine-tuning on the forward process (DiffusionNFT, arXiv:2509.16117).

    With v+ = beta v + (1 - beta) v_old, v- = (1 + beta) v_old - beta v, e(v) = x0_hat(v) - x0 and
    l(v) = <e^2> / <|e|>:  loss = adv_max (r l(v+) + (1 - r) l(v-)) / beta + kl <(v - v_ref)^2>. No sampler
    with noise, no log-probability, no guidance. Published for flow; ``extra["x0_slope"]`` (d x0_hat / d pred,
    sigma on flow) is what makes it hold for eps and v models too (derived).
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2509.16117"
    batch: ClassVar[BatchKind] = "rollouts"
    needs: ClassVar[frozenset[str]] = frozenset({"score", "tensors", "old_pred", "x0_slope"})

    beta: float = 1.0
    """How far v+ and v- lie from the old policy; 0.1 is published for OCR and several rewards."""
    kl: float = 1e-4
    """Weight of the distance to the reference; 0 runs none."""
    adv_max: float = 5.0
    """Advantages are cut here and mapped to [0, 1]."""
    mode: Mode = "all"
    """Which advantages count: all, the positive or negative ones, or no more than their sign."""

    def __post_init__(self) -> None:
        """Check ranges, and ask for the reference only where it has a weight."""
        for name in ("beta", "adv_max"):
            self._require(0 < getattr(self, name) < math.inf, name, "above 0 and finite")
        self._require(0 <= self.kl < math.inf, "kl", "0 or more and finite")
        if self.kl:
            self._declare(needs=self.needs | {"ref_pred"}, needs_reference=True)

    def loss(
        self, batch: Denoised, reduce_mean: ReduceMean = lambda x: x, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        """(N,) losses of N noised pictures; see OnlineObjective.loss."""
        own, r = predictions(batch), optimality(advantage(batch, self.adv_max), self.adv_max, self.mode)
        old = given(own.old_pred, "tensors.old_pred", "from which v+ and v- are formed")
        slope = further(batch, "x0_slope").view(-1, *[1] * (old.ndim - 1))
        move = self.beta * (own.pred - old)
        positive = self_normalised(slope * (old + move - own.target))  # (N,) l(v+)
        negative = self_normalised(slope * (old - move - own.target))
        loss = self.adv_max * (r * positive + (1 - r) * negative) / self.beta
        metrics = {"optimality": r, "positive": positive.detach(), "negative": negative.detach()}
        if not self.kl:
            return loss, metrics
        distance = reference_distance(batch)
        return loss + self.kl * distance, metrics | {"kl": distance.detach()}
