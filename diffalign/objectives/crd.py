"""CRD: centred reward distillation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from diffalign.objectives.base import Denoised, Metrics, ReduceMean, State
from diffalign.objectives.forward_process import (
    advantage,
    mean_square,
    predictions,
    reference_distance,
    same_group,
    self_normalised,
)
from diffalign.objectives.nft import optimality
from diffalign.objectives.steps import BatchKind, OnlineObjective, given, online_objectives

Centre = Literal["uniform", "softmax", "hard"]


@online_objectives.register("crd")
@dataclass(frozen=True, kw_only=True)
class CRD(OnlineObjective[Denoised]):
    """Match the policy's implicit reward to the given one, both centred in the group (arXiv:2603.14128).

    r = -[l(v) - l(v_old)], l(v) = <(v - v*)^2> / <|v - v*|>, R the advantage mapped to [0, 1];
    loss = adv_max / beta (beta r_c - R_c)^2 + kl (m + R (1 - m)) <(v - v_ref)^2>, m = 1e-4 / kl. Baselines
    have no gradient. A guided reference (kl_guidance, 4.5 as published) pulls guidance into the model.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2603.14128"
    batch: ClassVar[BatchKind] = "rollouts"
    whole_groups: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"score", "tensors", "old_pred"})

    beta: float = 1.0
    """Scale of the implicit reward."""
    adv_max: float = 5.0
    """Advantages are cut here and mapped to [0, 1]."""
    adaptive: bool = True
    """Divide squared errors by the mean absolute one."""
    match: Literal["mse", "bce"] = "mse"
    """Squared distance of the centred rewards, or cross-entropy of sigma(beta r_c) to sigma(R_c)."""
    centre: Centre = "uniform"
    """Weights of the baseline within a group: even; softmax(R / T) and softmax(-R / T), whose losses are
    averaged; or hard as released, softmax over R > 0, and even weights for want of any R < 0."""
    temperature: float = 0.5
    """T of centre softmax."""
    kl: float = 0.1
    """Weight of the distance to the reference; 0 runs none."""
    kl_guidance: float = 1.0
    """Guidance of that reference; 1 is none, and asks it once instead of twice."""

    def __post_init__(self) -> None:
        """Check ranges, and ask for the reference only where it has a weight."""
        for name in ("beta", "adv_max", "temperature"):
            self._require(0 < getattr(self, name) < math.inf, name, "above 0 and finite")
        self._require(1 <= self.kl_guidance < math.inf, "kl_guidance", "at least 1 and finite")
        self._require(self.kl == 0 or 1e-4 <= self.kl < math.inf, "kl", "0, or 1e-4 or more and finite")
        if self.kl:
            self._declare(needs=self.needs | {"ref_pred"}, needs_reference=True)

    def loss(
        self, batch: Denoised, reduce_mean: ReduceMean = lambda x: x, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        """(N,) losses of N noised pictures; see OnlineObjective.loss."""
        reward = optimality(advantage(batch, self.adv_max), self.adv_max)
        implicit, weights = self.implicit_reward(batch), self.weights(reward, same_group(batch.group))
        sides = [self.matched(implicit - w @ implicit.detach(), reward - w @ reward) for w in weights]
        loss = self.adv_max / self.beta * torch.stack(sides).mean(0)
        metrics = {"reward": reward, "implicit_reward": implicit.detach()}
        if not self.kl:
            return loss, metrics
        floor = 1e-4 / self.kl
        distance = (floor + reward * (1 - floor)) * reference_distance(batch)
        return loss + self.kl * distance, metrics | {"kl": distance.detach()}

    def guidance_of_reference(self) -> float:
        """See OnlineObjective.guidance_of_reference."""
        return self.kl_guidance if self.kl else 1.0

    def implicit_reward(self, batch: Denoised) -> Tensor:
        """(N,) by how much the policy fits an image better than the old one does."""
        own = predictions(batch)
        old = given(own.old_pred, "tensors.old_pred", "against which the implicit reward is formed")
        size = self_normalised if self.adaptive else mean_square
        return size(old - own.target) - size(own.pred - own.target)

    def weights(self, reward: Tensor, same: Tensor) -> list[Tensor]:
        """(N, N) weights of all rows in each row's baseline, for each direction."""
        even = torch.zeros_like(reward).expand(len(reward), -1).masked_fill(~same, -math.inf).softmax(1)
        if self.centre == "uniform":
            return [even]
        scores = reward.expand(len(reward), -1)
        if self.centre == "softmax":
            scaled = scores / self.temperature
            return [(sign * scaled).masked_fill(~same, -math.inf).softmax(1) for sign in (1, -1)]
        positive = same & (reward > 0)
        some = positive.any(1, keepdim=True)  # a group without any has even weights
        return [scores.masked_fill(~torch.where(some, positive, same), -math.inf).softmax(1), even]

    def matched(self, implicit: Tensor, reward: Tensor) -> Tensor:
        """(N,) losses of centred rewards."""
        logit = self.beta * implicit
        if self.match == "mse":
            return (logit - reward).square()
        return F.binary_cross_entropy_with_logits(logit, reward.sigmoid(), reduction="none")
