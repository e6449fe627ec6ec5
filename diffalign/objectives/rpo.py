"""RPO: a winner is also preferred to losers of similar prompts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from diffalign.objectives.base import Denoised, Metrics, ReduceMean, State, objectives
from diffalign.objectives.filled import extra_of
from diffalign.objectives.pair_objective import PairObjective
from diffalign.objectives.pairs import pair_metrics, pair_order


@objectives.register("rpo")
@dataclass(frozen=True, kw_only=True)
class RPO(PairObjective):
    """Contrast every winner with every loser of the batch, near prompts first (Diffusion-RPO, 2406.06382).

    loss_i = sum_j omega_ij l(z_ij), z_ij = -(beta / 2) (w a_w,i - w a_l,j), with omega_i the softmax over j
    of -(cosine distance of the prompts of winner i and loser j) / temperature. As the temperature goes to 0
    this is DPO (unless prompts are equal, whose losers share the weight). The losers are those of the local
    batch: a loss depends on what else is in it.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2406.06382"
    needs: ClassVar[frozenset[str]] = frozenset({"prompt_features"})
    coupled: ClassVar[bool] = True

    temperature: float = 0.1
    """Of the prompts' distances, which lie in [0, 2]; the less, the nearer a prompt must be to count."""

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        self._require(0 < self.temperature < math.inf, "temperature", "above 0 and finite")

    def of_logit(self, z: Tensor) -> Tensor:
        """See PairObjective.of_logit."""
        return F.softplus(-z)

    def loss(
        self, batch: Denoised, reduce_mean: ReduceMean = lambda x: x, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        """(P,) losses of P pairs, one for each winner; see Objective.loss."""
        pairs = self.pairs_of(replace(batch, margin=None))
        win, lose = pairs.weight_w * pairs.gap_w, pairs.weight_l * pairs.gap_l  # (P,)
        z = -0.5 * self.canonical * (win[:, None] - lose[None, :])  # (P, P)
        soft = 0.5 * (
            pairs.soft[:, None] + pairs.soft[None, :]
        )  # a hard winner against one side of a tie: 3/4
        weight = self._similarity(batch)
        metrics = {"own_weight": weight.diagonal()}
        each = soft * self.of_logit(z) + (1 - soft) * self.of_logit(-z)
        return (weight * each).sum(1), pair_metrics(pairs, z.diagonal()) | metrics

    def _similarity(self, batch: Denoised) -> Tensor:
        """(P, P) weights of losers j for winners i; each row adds up to 1."""
        features = extra_of(batch, "prompt_features", "rpo").detach().to(batch.error.dtype)  # (N, F)
        winner, loser = pair_order(batch.group, batch.role).unbind(1)
        unit = F.normalize(features, dim=1)
        return torch.softmax(unit[winner] @ unit[loser].T / self.temperature, 1)  # the distance's 1 cancels
