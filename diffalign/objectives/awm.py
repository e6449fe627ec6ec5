"""AWM: advantage-weighted matching."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from diffalign.objectives.base import Denoised, Metrics, ReduceMean, State
from diffalign.objectives.forward_process import (
    advantage,
    further,
    mean_square,
    predictions,
    reference_distance,
)
from diffalign.objectives.ratio import clipped_surrogate, ratio_metrics
from diffalign.objectives.steps import BatchKind, OnlineObjective, online_objectives

Likelihood = Literal["uniform", "t", "t2", "huber", "ghuber"]
POWER = 0.25
TINY = 1e-10


def likelihood(kind: Likelihood, error: Tensor, t: Tensor) -> Tensor:
    """(N,) surrogates of log p(x0) by denoising errors at (N,) shares t of the noise time, in [0, 1]."""
    match kind:
        case "uniform":
            return -error
        case "t":
            return -t * error
        case "t2":
            return -t.square() * error
        case "huber":
            return -t * ((error + TINY).sqrt() - math.sqrt(TINY))
        case "ghuber":
            return -t / POWER * ((error + TINY).pow(POWER) - math.pow(TINY, POWER))


@online_objectives.register("awm")
@dataclass(frozen=True, kw_only=True)
class AWM(OnlineObjective[Denoised]):
    """Policy gradient whose log-probability is the denoising error (AWM, arXiv:2509.25050).

    r = exp(l(e) - l(e_old)) on the same t and noise, l minus a weighted error; then the clipped surrogate
    of PPO, kl <(v - v_ref)^2> and ema_kl <(v - v_ema)^2>.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2509.25050"
    batch: ClassVar[BatchKind] = "rollouts"

    likelihood: Likelihood = "ghuber"
    """Error to log-probability: -e, -t e, -t^2 e, a Huber form with its root, or one with its fourth root."""
    clip: float = 1.0
    """How far a ratio may leave 1 before its gradient ends; 1 hardly any. Never drop it and ema_kl both."""
    adv_max: float = 1.0
    """Advantages are cut here first."""
    kl: float = 1e-3
    """Weight of the distance to the reference (1e-4 to 3e-3 are published); 0 runs none."""
    ema_kl: float = 1.0
    """Weight of the distance to the running average of the policy; 0 runs none."""
    timesteps: int = 1000
    """T, training timesteps of a VP model; a flow model's t is a share of the time already."""

    def __post_init__(self) -> None:
        """Check ranges, and ask for what has a weight."""
        self._require(0 < self.clip <= 1, "clip", "in (0, 1]")
        self._require(0 < self.adv_max < math.inf, "adv_max", "above 0 and finite")
        for name in ("kl", "ema_kl"):
            self._require(0 <= getattr(self, name) < math.inf, name, "0 or more and finite")
        self._require(self.timesteps > 0, "timesteps", "above 0")
        needs = {"score", "old_error"} | ({"tensors"} if self.kl or self.ema_kl else set())
        needs |= ({"ref_pred"} if self.kl else set()) | ({"ema_pred"} if self.ema_kl else set())
        self._declare(needs=frozenset(needs), needs_reference=self.kl > 0)

    def loss(
        self, batch: Denoised, reduce_mean: ReduceMean = lambda x: x, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        """(N,) losses of N noised pictures; see OnlineObjective.loss."""
        t = batch.t if batch.t.is_floating_point() else batch.t / self.timesteps
        t = t.to(batch.error.dtype)
        old = likelihood(self.likelihood, further(batch, "old_error").detach(), t)
        change = likelihood(self.likelihood, batch.error, t) - old
        ratio = change.exp()
        loss = clipped_surrogate(ratio, advantage(batch, self.adv_max), self.clip)
        metrics = ratio_metrics(ratio, change, self.clip)
        if self.kl:
            metrics["kl"] = reference_distance(batch)
            loss = loss + self.kl * metrics["kl"]
        if self.ema_kl:
            metrics["ema_kl"] = mean_square(predictions(batch).pred - further(batch, "ema_pred").detach())
            loss = loss + self.ema_kl * metrics["ema_kl"]
        return loss, {name: value.detach() for name, value in metrics.items()}
