"""Diffusion-KTO: likes and dislikes of single images."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from diffalign.objectives.base import DataKind, Denoised, Metrics, Objective, ReduceMean, State, objectives
from diffalign.objectives.beta import BetaConvention, canonical_beta
from diffalign.objectives.labels import label_metrics, liked
from diffalign.objectives.running import mean_over_all
from diffalign.objectives.utility import Utility, utility


@objectives.register("kto")
@dataclass(frozen=True, kw_only=True)
class KTO(Objective):
    """Utility of likes and dislikes (Diffusion-KTO, arXiv:2404.04465): loss = lambda_y (1 - U(y (u - k))).

    u = beta s = -(beta / 2) w(t) (e - r), y = 1 for a like and -1 for a dislike, k an estimate of the KL
    distance to the reference, over all processes and without gradient. An image that is neither liked nor
    disliked counts half as each. With one kind alone k is that kind's own mean and takes most of the signal
    away (kl: zero does not): the figures likes, dislikes and one_sided tell.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2404.04465"
    data: ClassVar[DataKind] = "labels"
    coupled: ClassVar[bool] = True

    beta: float = 2000.0
    """Strength of the pull to the reference, in the convention named below."""
    beta_convention: BetaConvention = "canonical"
    """What beta is stated in; the published code's 1000 is diffusion_kto, which is 2000 here."""
    utility: Utility = "sigmoid"
    """U: sigmoid (Kahneman-Tversky; bounded), loss_averse (log sigma), or risk_seeking_1, _2, _3."""
    kl: Literal["batch", "balanced", "mismatched", "zero"] = "batch"
    """k: batch (mean of u, at least 0), balanced (mean of the likes' and the dislikes' mean), mismatched
    (mean u under other captions: two more passes), zero.
    """
    desirable_weight: float = 1.0
    """lambda of liked images, at least 0."""
    undesirable_weight: float = 1.0
    """lambda of disliked images, at least 0."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        self._require(0 < self.beta < math.inf, "beta", "above 0 and finite (2000 is usual)")
        for name in ("desirable_weight", "undesirable_weight"):
            self._require(0 <= getattr(self, name) < math.inf, name, "at least 0 and finite")
        mismatched = {"kl_error", "kl_ref_error"} if self.kl == "mismatched" else ()
        self._declare(needs=frozenset(mismatched), coupled=self.kl != "zero")

    def loss(
        self, batch: Denoised, reduce_mean: ReduceMean = lambda x: x, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        """(N,) losses of N images; see Objective.loss."""
        p, u = liked(batch), self._score(batch.gap())  # (N,) each
        kinds = batch.counted() * torch.stack([p, 1 - p])  # (2, N)
        means, counts = mean_over_all(u, kinds, reduce_mean)  # (2,): likes, dislikes
        k = self._shift(means, counts, batch, reduce_mean)
        of_like = self.desirable_weight * (1 - utility(self.utility, u - k, 1))
        of_dislike = self.undesirable_weight * (1 - utility(self.utility, u - k, -1))
        metrics = label_metrics(batch, u) | {
            "accuracy": p * (u > k) + (1 - p) * (u < k),
            "kl": k.expand_as(u),
            "one_sided": (counts == 0).any().to(u.dtype).expand_as(u),
        }
        return p * of_like + (1 - p) * of_dislike, metrics

    def _score(self, gap: Tensor) -> Tensor:
        """u = beta s."""
        return -0.5 * canonical_beta(self.beta, self.beta_convention) * gap

    def _shift(self, means: Tensor, counts: Tensor, batch: Denoised, reduce_mean: ReduceMean) -> Tensor:
        """Scalar k, without gradient; means and counts are those of likes and dislikes."""
        if self.kl == "batch":
            return ((means * counts).sum() / counts.sum().clamp_min(1e-12)).clamp_min(0)
        if self.kl == "balanced":  # of the kinds that are there
            return means.sum() / (counts > 0).sum().clamp_min(1)
        if self.kl == "zero":
            return torch.zeros_like(means[0])
        other = self._score(_mismatched(batch).gap())
        return mean_over_all(other, batch.counted(), reduce_mean)[0]


def _mismatched(batch: Denoised) -> Denoised:
    """The batch with the errors under the next row's caption.

    Raises:
        ValueError: they have not been computed.
    """
    missing = sorted({"kl_error", "kl_ref_error"} - set(batch.extra))
    if missing:
        raise ValueError(
            f"kto.kl is mismatched, and the batch has no extra {missing[0]!r}: the trainer must run "
            "policy and reference under other captions as well, or take kl: batch"
        )
    return replace(batch, error=batch.extra["kl_error"], ref_error=batch.extra["kl_ref_error"])
