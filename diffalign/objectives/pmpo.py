"""PMPO: likes, dislikes, or only one kind, held by the distance to the reference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from diffalign.diffusion.spaces import native_error
from diffalign.objectives.base import DataKind, Denoised, Metrics, Objective, ReduceMean, State, objectives
from diffalign.objectives.labels import label_metrics, liked


@objectives.register("pmpo")
@dataclass(frozen=True, kw_only=True)
class PMPO(Objective):
    """Likelihood up on likes, down on dislikes, near the reference (PMPO, arXiv:2410.04166; derived here).

    loss = alpha (w / 2) a on a like, -(1 - alpha) (w / 2) a on a dislike, plus kl_weight (w / 2) |p - r|^2 on
    both: a is the error gap, p and r the predictions, and the mean square of their difference is the KL
    distance of two denoising steps of equal variance. Written out, |p - r|^2 in a dislike has the factor
    kl_weight - (1 - alpha): above 0 the loss has a floor, and so works from dislikes alone.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2410.04166"
    data: ClassVar[DataKind] = "labels"
    needs: ClassVar[frozenset[str]] = frozenset({"tensors"})

    alpha: float = 0.5
    """Weight of liked images, in [0, 1]; disliked ones have 1 - alpha. 1 learns from likes, 0 from dislikes
    alone; the distance to the reference counts on both.
    """
    kl_weight: float = 1.0
    """Weight of the distance to the reference; above 1 - alpha."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        self._require(0 <= self.alpha <= 1, "alpha", "in [0, 1]")
        least = 1 - self.alpha
        must = f"above 1 - alpha = {least:g}, or the loss of a disliked image has no floor"
        self._require(least < self.kl_weight < math.inf, "kl_weight", must)

    def loss(
        self, batch: Denoised, reduce_mean: ReduceMean = lambda x: x, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        """(N,) losses of N images; see Objective.loss.

        Raises:
            ValueError: the batch has no predictions of policy and reference.
        """
        if batch.tensors is None or batch.tensors.ref_pred is None:
            raise ValueError("pmpo needs the predictions of policy and reference: the batch has no tensors")
        p, half_gap = liked(batch), 0.5 * batch.gap()  # (N,) each
        distance = native_error(batch.tensors.pred, batch.tensors.ref_pred)  # (N,)
        distance = 0.5 * distance if batch.t_weight is None else 0.5 * batch.t_weight * distance
        pull = self.alpha * p - (1 - self.alpha) * (1 - p)
        metrics = label_metrics(batch, -half_gap) | {"distance": distance.detach()}
        return pull * half_gap + self.kl_weight * distance, metrics
