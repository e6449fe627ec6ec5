"""CPO: contrast of the errors without a reference, held by fine-tuning on the winner."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from diffalign.objectives.base import Denoised, Metrics, ReduceMean, State, objectives
from diffalign.objectives.pair_objective import PairObjective
from diffalign.objectives.pairs import pair_metrics


@objectives.register("cpo")
@dataclass(frozen=True, kw_only=True)
class CPO(PairObjective):
    """loss = l(z) + sft_weight w e_w, z = -(beta / 2) w (e_w - e_l) (CPO, arXiv:2401.08417).

    Without the second term it diverges, since nothing else anchors the policy. Label smoothing as in cdpo; a
    soft label p shares the second term out over both sides.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2401.08417"
    needs_reference: ClassVar[bool] = False

    beta: float = 500.0
    """Steepness, in the convention named below. Errors of two images differ by far more than error gaps, so
    it is smaller than with a reference.
    """
    sft_weight: float = 1.0
    """Weight (lambda) of the winner's error; 0 leaves the policy without an anchor."""
    epsilon: float = 0.0
    """Share of labels that are wrong, in [0, 0.5)."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self._require(0 <= self.sft_weight < math.inf, "sft_weight", "at least 0 and finite")
        self._require(0 <= self.epsilon < 0.5, "epsilon", "in [0, 0.5)")

    def of_logit(self, z: Tensor) -> Tensor:
        """See PairObjective.of_logit."""
        return (1 - self.epsilon) * F.softplus(-z) + self.epsilon * F.softplus(z)

    def loss(
        self, batch: Denoised, reduce_mean: ReduceMean = lambda x: x, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        """(P,) losses of P pairs; see Objective.loss."""
        pairs = self.pairs_of(batch)
        z = pairs.logit(self.canonical)  # (P,)
        kept = pairs.expected(pairs.weight_w * pairs.error_w, pairs.weight_l * pairs.error_l)
        return pairs.soften(self.of_logit, z) + self.sft_weight * kept, pair_metrics(pairs, z)
