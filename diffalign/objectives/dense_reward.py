"""The dense-reward view: early denoising steps count more."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from diffalign.diffusion.discount import DENOISING_STEPS, temporal_discount
from diffalign.objectives.base import Denoised, Metrics, ReduceMean, State, objectives
from diffalign.objectives.dpo import DPO


@objectives.register("dense_reward")
@dataclass(frozen=True, kw_only=True)
class DenseReward(DPO):
    """DPO whose logit is weighted by a temporal discount (arXiv:2402.08265; offline surrogate, derived).

    z is multiplied by w_t = K gamma^k / sum_j gamma^j, j below K, where k is the denoising step (0 the
    noisiest of K) that t falls into; its mean over uniform t is 1. The published method draws t from that
    distribution instead: the discounted timestep sampler with objective dpo does so. Use one of the two.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2402.08265"

    gamma: float = 0.9
    """Discount of each further denoising step; 1 is plain DPO."""
    steps: int = DENOISING_STEPS
    """K, denoising steps of a whole trajectory."""
    timesteps: int = 1000
    """T, training timesteps of a VP model; a flow model's t is a share of the time already."""

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        self._require(0 < self.gamma <= 1, "gamma", "above 0 and at most 1 (early steps count more)")
        for name in ("steps", "timesteps"):
            self._require(getattr(self, name) > 0, name, "above 0")

    def loss(
        self, batch: Denoised, reduce_mean: ReduceMean = lambda x: x, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        """(P,) losses of P pairs; see Objective.loss."""
        weight = self.discount(batch.t).to(batch.error.dtype)
        weight = weight if batch.t_weight is None else weight * batch.t_weight
        return super().loss(replace(batch, t_weight=weight), reduce_mean, state)

    def discount(self, t: Tensor) -> Tensor:
        """(N,) float64 weights of (N,) times: integers below T of a VP model, or sigma in [0, 1] of flow."""
        return temporal_discount(t, self.gamma, steps=self.steps, timesteps=self.timesteps)
