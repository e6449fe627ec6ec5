"""Supervised fine-tuning on the preferred images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from diffalign.objectives.base import DataKind, Denoised, Metrics, Objective, ReduceMean, State, objectives


@objectives.register("sft")
@dataclass(frozen=True, kw_only=True)
class SFT(Objective):
    """Denoise the preferred images, nothing else (the SFT baseline of arXiv:2311.12908, section 5)."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2311.12908"
    data: ClassVar[DataKind] = "winners"
    needs_reference: ClassVar[bool] = False

    def loss(
        self, batch: Denoised, reduce_mean: ReduceMean = lambda x: x, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        """(N,) weighted errors of N winners; the loader gives winners only."""
        error = batch.error if batch.t_weight is None else batch.t_weight * batch.error
        return error, {"error_win": batch.error.detach()}
