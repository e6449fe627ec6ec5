"""Self-NPO: truncated diffusion fine-tuning."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from diffalign.objectives.base import DataKind, Denoised, Metrics, Objective, ReduceMean, State, objectives
from diffalign.objectives.filled import tensors_of


@objectives.register("self_npo")
@dataclass(frozen=True, kw_only=True)
class SelfNPO(Objective):
    """Learn the blurred pictures of a cut-off sampling: a negative model for guidance (arXiv:2505.11777).

    Per row with d = sqrt(w(t)) |pred - target|: the mean over elements of sqrt(d^2 + c^2) - c, or of d^2. It
    takes corruptor truncated_sampling, whose target is the clean picture that a teacher sees after a few
    unconditional steps, and error_weight x0_equivalent, which makes d a distance of clean pictures.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2505.11777"
    data: ClassVar[DataKind] = "winners"
    needs_reference: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"tensors"})

    distance: Literal["huber", "l2"] = "huber"
    """huber: linear beyond c, as released; l2: mean square, which the noisiest steps dominate."""
    c: float = 0.001
    """Where huber turns linear, in units of the latent."""

    def __post_init__(self) -> None:
        """Check ranges."""
        self._require(0 < self.c < math.inf, "c", "above 0 and finite")

    def loss(
        self, batch: Denoised, reduce_mean: ReduceMean = lambda x: x, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        """(N,) losses of N images; see Objective.loss."""
        weight = torch.ones_like(batch.error) if batch.t_weight is None else batch.t_weight  # (N,)
        metrics = {"error_win": batch.error.detach()}
        if self.distance == "l2":
            return weight * batch.error, metrics
        tensors = tensors_of(batch, "self_npo")
        wide = tensors.pred if tensors.pred.element_size() >= 4 else tensors.pred.float()
        square = (wide - tensors.target.to(wide.dtype)).square().flatten(1) * weight[:, None]  # (N, D)
        # sqrt(d^2 + c^2) - c, written so that nothing cancels at small d
        return (square / ((square + self.c**2).sqrt() + self.c)).mean(1), metrics
