"""Diffusion-DPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from diffalign.objectives.base import DataKind, Denoised, Metrics, Objective, ReduceMean, State, objectives
from diffalign.objectives.beta import BetaConvention, canonical_beta
from diffalign.objectives.pairs import pair_metrics, pair_units, split_pairs


@objectives.register("dpo")
@dataclass(frozen=True, kw_only=True)
class DPO(Objective):
    r"""Prefer the winner by the policy's margin over the reference (Diffusion-DPO, arXiv:2311.12908, eq. 14).

    loss = -p log sigma(z) - (1 - p) log sigma(-z), with z = -(beta / 2) w(t) ((e_w - r_w) - (e_l - r_l)) and
    p = 1
    for a hard label, 1/2 for a tie. On eps, v and flow models alike the errors are those of the native
    target.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2311.12908"
    data: ClassVar[DataKind] = "pairs"

    beta: float = 2000.0
    """Strength of the pull to the reference, in the convention named below; 2000 to 5000 are usual."""
    beta_convention: BetaConvention = "canonical"
    """What beta is stated in: canonical (mean error, 1/2 kept) or the name of a paper's or script's
    convention.
    """

    def __post_init__(self) -> None:
        """Check the range of beta."""
        if not self.beta > 0:
            raise ValueError(f"dpo.beta is {self.beta}; it must be above 0 (2000 is usual)")

    def loss(
        self, batch: Denoised, reduce_mean: ReduceMean = lambda x: x, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        """(P,) losses of P pairs; see Objective.loss."""
        pairs = split_pairs(batch)
        z = pairs.logit(canonical_beta(self.beta, self.beta_convention))  # (P,)
        loss = pairs.soft * F.softplus(-z) + (1 - pairs.soft) * F.softplus(z)
        return loss, pair_metrics(pairs, z)

    def units(self, batch: Denoised, values: Tensor) -> Tensor:
        """See Objective.units."""
        return pair_units(batch, values)
