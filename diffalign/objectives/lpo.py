"""LPO: the better of two next latents from one and the same latent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from diffalign.objectives.base import Metrics, ReduceMean, State
from diffalign.objectives.pairs import pair_order
from diffalign.objectives.steps import BatchKind, OnlineObjective, Steps, Unit, given, online_objectives


@online_objectives.register("lpo")
@dataclass(frozen=True, kw_only=True)
class LPO(OnlineObjective[Steps]):
    """Step-level DPO (Latent Preference Optimization, arXiv:2502.01051).

    loss = -log sigma(beta [ln r_w - ln r_l]), r = clamp(p(x') / p_ref(x'), 1 - clip, 1 + clip). Winner and
    loser start from the same latent, so one pass of policy and of reference gives both.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2502.01051"
    batch: ClassVar[BatchKind] = "steps"
    unit: ClassVar[Unit] = "pair"
    needs_reference: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"ref_logp"})

    beta: float = 500.0
    """Strength of the pull to the reference; log-probabilities are means over elements. 100 to 500."""
    clip: float = 0.1
    """How far a ratio may leave 1 before its side has no gradient."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        self._require(0 < self.beta < math.inf, "beta", "above 0 and finite (100 to 500 are usual)")
        self._require(0 < self.clip < 1, "clip", "in (0, 1) (0.1 is usual)")

    def loss(
        self, batch: Steps, reduce_mean: ReduceMean = lambda x: x, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        """(P,) losses of P pairs of steps; see OnlineObjective.loss."""
        change = batch.logp - given(batch.ref_logp, "ref_logp", "against which a ratio is formed")
        held = change.clamp(math.log1p(-self.clip), math.log1p(self.clip))
        winner, loser = pair_order(batch.group, batch.role).unbind(1)
        z = self.beta * (held[winner] - held[loser])  # (P,)
        outside = torch.maximum((held != change)[winner], (held != change)[loser])
        metrics = {
            "accuracy": (z > 0).to(z.dtype) + 0.5 * (z == 0).to(z.dtype),
            "margin": z.detach(),
            "clipped": outside.to(z.dtype),
            "ratio_win": change[winner].detach().exp(),
            "ratio_lose": change[loser].detach().exp(),
        }
        return -F.logsigmoid(z), metrics

    def units(self, batch: Steps, values: Tensor) -> Tensor:
        """(P,) mean over the two sides of each pair."""
        return values[pair_order(batch.group, batch.role)].mean(1)
