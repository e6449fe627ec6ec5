"""Diffusion-DPO."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from diffalign.objectives.base import Denoised, Metrics, ReduceMean, State, objectives
from diffalign.objectives.pair_objective import PairObjective
from diffalign.objectives.pairs import Pairs, pair_metrics
from diffalign.objectives.running import running_mean


@objectives.register("dpo")
@dataclass(frozen=True, kw_only=True)
class DPO(PairObjective):
    r"""Prefer the winner by the policy's margin over the reference (Diffusion-DPO, arXiv:2311.12908, eq. 14).

    loss = -p log sigma(z) - (1 - p) log sigma(-z), with z = -(beta / 2) w(t) ((e_w - r_w) - (e_l - r_l)) less
    the pair's margin, and p = 1 for a hard label, 1/2 for a tie. On eps, v and flow models alike the errors
    are those of the native target.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2311.12908"

    auto_beta: bool = False
    """Choose beta at each batch so that |z| is what auto_beta_target asks for, by a running mean of the
    error gaps' difference (the idea of SimpleTuner's flow_dpo).
    """
    auto_beta_target: float = 0.2
    """Gradient factor sigma(-z) that a rightly ranked pair is to have at the usual |z|; in (0, 0.5)."""
    auto_beta_decay: float = 0.99
    """What the running mean keeps of itself at each batch, in [0, 1)."""
    auto_beta_range: tuple[float, float] = (0.1, 10.0)
    """Least and largest automatic beta, as multiples of beta, so that they hold for means and sums alike."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        low, high = self.auto_beta_range
        self._require(0 < self.auto_beta_target < 0.5, "auto_beta_target", "in (0, 0.5)")
        self._require(0 <= self.auto_beta_decay < 1, "auto_beta_decay", "in [0, 1)")
        self._require(0 < low <= high < math.inf, "auto_beta_range", "two numbers above 0 in ascending order")
        self._declare(coupled=self.auto_beta)

    def of_logit(self, z: Tensor) -> Tensor:
        """See PairObjective.of_logit."""
        return F.softplus(-z)

    def loss(
        self, batch: Denoised, reduce_mean: ReduceMean = lambda x: x, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        """(P,) losses of P pairs; see Objective.loss."""
        if not self.auto_beta:
            return super().loss(batch, reduce_mean, state)
        pairs = self.pairs_of(batch)
        beta = self._fitting_beta(pairs, self.units(batch, batch.counted()), reduce_mean, state)
        z = pairs.logit(beta)  # (P,)
        return pairs.soften(self.of_logit, z), pair_metrics(pairs, z) | {"beta": beta.expand_as(z)}

    def _fitting_beta(
        self, pairs: Pairs, where: Tensor, reduce_mean: ReduceMean, state: State | None
    ) -> Tensor:
        """Scalar beta at which the running mean of |z| is the target's; beta itself while all gaps are 0."""
        lead = pairs.lead(1.0).abs()
        size = running_mean(lead, where, "dpo.lead", self.auto_beta_decay, reduce_mean, state)
        wanted = math.log(1 / self.auto_beta_target - 1)  # -logit of the target
        low, high = (self.canonical * factor for factor in self.auto_beta_range)
        return torch.where(size > 0, (wanted / size).clamp(low, high), self.canonical)
