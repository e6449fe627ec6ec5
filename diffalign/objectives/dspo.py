"""DSPO: direct score preference optimisation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from diffalign.objectives.base import Denoised, Metrics, ReduceMean, State, objectives
from diffalign.objectives.filled import reference_of, tensors_of
from diffalign.objectives.pair_objective import PairObjective
from diffalign.objectives.pairs import pair_metrics, pair_order


@objectives.register("dspo")
@dataclass(frozen=True, kw_only=True)
class DSPO(PairObjective):
    """Match the score of the winner shifted by the preference's gradient (DSPO, ICLR 2025).

    With the canonical logit z of the pair, residual d = pred - target and drift r = pred - reference of the
    winner, the loss is the mean over elements of (d - beta sigma(-z) r)^2. The code's SDXL branch is another
    loss: sigma(-z)^2, or the mean of (sigma(-z) r)^2 where the mean of r^2 is at least ``switch`` (decided
    for each pair here, for each local batch there; the same at one pair a process). Published for eps; v and
    flow use the native residuals (derived). A soft label mixes both directions.
    """

    paper: ClassVar[str] = "https://github.com/huaishengzhu/DSPO"
    needs: ClassVar[frozenset[str]] = frozenset({"tensors"})

    form: Literal["sd15", "sdxl"] = "sd15"
    """sd15: the paper's loss; sdxl: what the released code does with SDXL."""
    beta: float = 0.001
    """Of the logit and of the shift. 0.001 as released is plain fine-tuning on winners to seven digits; the
    sdxl form takes 5000."""
    switch: float = 0.1
    """Mean squared drift from which the sdxl form weighs the drift itself."""

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        self._require(0 < self.switch < math.inf, "switch", "above 0 and finite")

    def of_logit(self, z: Tensor) -> Tensor:
        """sigma(-z)^2, the sdxl form near the reference."""
        return torch.sigmoid(-z).square()

    def loss(
        self, batch: Denoised, reduce_mean: ReduceMean = lambda x: x, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        """(P,) losses of P pairs; see Objective.loss."""
        pairs, tensors = self.pairs_of(batch), tensors_of(batch, "dspo")
        order = pair_order(batch.group, batch.role)  # (P, 2)
        z = pairs.logit(self.canonical)
        residual = (tensors.pred - tensors.target)[order].flatten(2)  # (P, 2, D)
        drift = (tensors.pred - reference_of(batch, "dspo"))[order].flatten(2)
        win, lose = (self._side(s * z, residual[:, i], drift[:, i]) for i, s in ((0, 1), (1, -1)))
        return pairs.expected(win, lose), pair_metrics(pairs, z)

    def _side(self, z: Tensor, residual: Tensor, drift: Tensor) -> Tensor:
        """(P,) loss that counts the side with (P, D) residual and drift as winner; (P,) z is its logit."""
        if self.form == "sd15":
            return (residual - self.canonical * torch.sigmoid(-z)[:, None] * drift).square().mean(1)
        size = drift.square().mean(1)
        return self.of_logit(z) * torch.where(size >= self.switch, size, torch.ones_like(size))
