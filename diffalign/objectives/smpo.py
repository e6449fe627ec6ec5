"""SmPO: the preference of a pair scales its beta."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from diffalign.objectives.base import Denoised, Metrics, ReduceMean, State, objectives
from diffalign.objectives.pair_objective import PairObjective
from diffalign.objectives.pairs import pair_metrics


@objectives.register("smpo")
@dataclass(frozen=True, kw_only=True)
class SmPO(PairObjective):
    """DPO whose logit is multiplied by gamma (2 p - 1), p the probability of the label (arXiv:2506.02698).

    loss = -log sigma(gamma (2 p - 1) z) with the canonical logit z. A pair nobody can decide (p = 1/2) has no
    gradient, and p below 1/2 turns the pair round. The paper looks at latents found by ReNoise inversion:
    that is the corruptor's part. Errors are native, so eps, v and flow models all do.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2506.02698"
    needs: ClassVar[frozenset[str]] = frozenset({"soft"})

    gamma: float = 10.0
    """Factor on 2 p - 1; a pair of p = 0.55 counts as one of plain DPO at 10."""

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        self._require(0 < self.gamma < math.inf, "gamma", "above 0 and finite (10 is usual)")

    def of_logit(self, z: Tensor) -> Tensor:
        """See PairObjective.of_logit."""
        return F.softplus(-z)

    def loss(
        self, batch: Denoised, reduce_mean: ReduceMean = lambda x: x, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        """(P,) losses of P pairs; see Objective.loss.

        Raises:
            ValueError: the batch has no soft labels.
        """
        if batch.soft is None:
            raise ValueError("smpo needs soft labels: store the probability of each pair in its values")
        pairs = self.pairs_of(batch)
        factor = self.gamma * (2 * pairs.soft - 1)  # (P,)
        z = factor * pairs.logit(self.canonical)
        return self.of_logit(z), pair_metrics(pairs, z) | {"pair_factor": factor.detach()}


def preference_probability(score_w: Tensor, score_l: Tensor, low: float, high: float) -> Tensor:
    """p = sigma((r_w - r_l) / (high - low)): soft labels from a scorer (SmPO's relabelling).

    Args:
        score_w: (P,) scores of the first images.
        score_l: (P,) scores of the second images.
        low: least score of the data set (0.11543526500463486 for PickScore on Pick-a-Pic).
        high: largest score of the data set (0.28201571106910706).

    Returns:
        (P,) probabilities that the first image is the better one; between 0.27 and 0.73 within the range.

    Raises:
        ValueError: high is not above low.
    """
    if not high > low:
        raise ValueError(f"high is {high} and low {low}; the range of the scores must not be empty")
    return torch.sigmoid((score_w - score_l) / (high - low))
