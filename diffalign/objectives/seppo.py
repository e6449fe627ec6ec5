"""SePPO: winners against pictures of an earlier checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from diffalign.objectives.base import Denoised, Metrics, ReduceMean, State, objectives
from diffalign.objectives.filled import extra_of
from diffalign.objectives.pair_objective import PairObjective
from diffalign.objectives.pairs import Pairs, pair_metrics, pair_order


@objectives.register("seppo")
@dataclass(frozen=True, kw_only=True)
class SePPO(PairObjective):
    """Decide pair by pair whether the checkpoint's picture is a loser or a winner (arXiv:2410.05255).

    loss = -log sigma(z), z = -(beta / 2) w(t) (a_w - f a_r), with the gaps a of the data's winner w (the
    anchor, role +1) and of the picture r that the reference checkpoint made (role -1). f is taken from the
    anchor's a_w: where the policy has become better on it than the checkpoint, r is a loser (f = 1); where it
    is worse, r counts as a winner (sign: f = -1) or not at all (indicator: f = 0).

    What the trainer provides: pairs of a data set's winner and a picture of the checkpoint drawn for this
    step, each with its own noise and one t, and ref_error of that very checkpoint for both rows.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2410.05255"

    flip: Literal["sign", "indicator", "none"] = "sign"
    """sign: f is 1 or -1; indicator: 1 or 0; none: always 1, plain DPO against the checkpoint's pictures."""
    anchor: Literal["same_draw", "more_draws"] = "same_draw"
    """What decides f: the errors of the loss itself, as published, or the means of further (t, noise) draws
    in extra anchor_error and anchor_ref_error, (N,) each, which only the winners' rows are read of."""
    draws: int = 4
    """more_draws: number of them; each costs a pass of policy and reference."""

    def __post_init__(self) -> None:
        """Check ranges; more draws are a need of their own."""
        super().__post_init__()
        self._require(self.draws > 0, "draws", "above 0")
        if self.anchor == "more_draws":
            self._declare(needs=frozenset({"anchor_error", "anchor_ref_error"}))

    def of_logit(self, z: Tensor) -> Tensor:
        """See PairObjective.of_logit."""
        return F.softplus(-z)

    def loss(
        self, batch: Denoised, reduce_mean: ReduceMean = lambda x: x, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        """(P,) losses of P pairs; see Objective.loss."""
        pairs = self.pairs_of(replace(batch, margin=None))
        f = self._factor(-self._anchor_gap(batch, pairs).detach())  # (P,)
        z = -0.5 * self.canonical * (pairs.weight_w * pairs.gap_w - f * pairs.weight_l * pairs.gap_l)
        return self.of_logit(z), pair_metrics(pairs, z) | {"flip": f}

    def _anchor_gap(self, batch: Denoised, pairs: Pairs) -> Tensor:
        if self.anchor == "same_draw":
            return pairs.gap_w
        error, reference = (extra_of(batch, f"anchor_{n}", "seppo") for n in ("error", "ref_error"))
        return (error - reference)[pair_order(batch.group, batch.role)[:, 0]]

    def _factor(self, better: Tensor) -> Tensor:
        """(P,) f of (P,) gains of the policy over the checkpoint on the anchor."""
        if self.flip == "sign":
            return torch.sign(better)
        return (better > 0).to(better.dtype) if self.flip == "indicator" else torch.ones_like(better)
