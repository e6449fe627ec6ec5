"""Further terms around any pair objective."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from diffalign.objectives.base import DataKind, Denoised, Metrics, Objective, ReduceMean, State, objectives
from diffalign.objectives.dpo import DPO
from diffalign.objectives.filled import extra_of, reference_of, tensors_of
from diffalign.objectives.pairs import pair_units, split_pairs
from diffalign.objectives.wrapping import adopt, safeguard, scale_losers


@objectives.register("with_terms")
@dataclass(frozen=True, kw_only=True)
class WithTerms(Objective):
    """A pair objective plus terms that keep it from drifting (SFT and anchor as in SimpleTuner's flow DPO).

    loss = pair + sft (w e_w) + anchor (d_w + d_l) / 2, with d = mean |policy - reference|^2 of predictions,
    at the data or (``anchor_on``) where the policy itself is.
    ``loser`` and ``sdpo`` multiply the gradient of the losers' errors and leave every value as it is: the
    logit, and with it accuracy and saturation, stay those of the labels (weighing the value would move the
    point at which a pair counts as learnt). Soft labels share the SFT term; ties are not scaled.
    """

    paper: ClassVar[str] = "https://github.com/bghira/SimpleTuner"
    data: ClassVar[DataKind] = "pairs"

    pair: Objective = field(default_factory=DPO)
    """The pair objective within: a block with its name and options."""
    sft: float = 0.0
    """Weight of the winner's own error."""
    anchor: float = 0.0
    """Weight of the squared distance of policy and reference predictions, on winners and losers."""
    anchor_on: Literal["data", "rollouts"] = "data"
    """Where that distance is taken: at the batch's own noisy latents, or at noised pictures that the policy
    makes of the batch's prompts (a dozen more passes a step)."""
    loser: float = 1.0
    """Factor on the gradient of the losers' errors; 0 only pulls winners."""
    sdpo: float | None = None
    """SDPO's mu, 0 to 1: caps the losers' gradient so that winners do not suffer; null does not."""

    def __post_init__(self) -> None:
        """Check ranges, and take over what the objective within declares."""
        for name in ("sft", "anchor", "loser"):
            self._require(0 <= getattr(self, name) < math.inf, name, "at least 0 and finite")
        self._require(self.sdpo is None or 0 <= self.sdpo <= 1, "sdpo", "in [0, 1], or null")
        safe = self.sdpo is not None
        on_data = self.anchor > 0 and self.anchor_on == "data"
        needs = {"tensors"} if on_data or safe else set[str]()
        needs |= {"rollout_distance"} if self.anchor and not on_data else set()
        adopt(self, self.pair, needs, reference=self.anchor > 0, coupled=safe)

    def loss(
        self, batch: Denoised, reduce_mean: ReduceMean = lambda x: x, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        """(P,) losses of P pairs; see Objective.loss."""
        factor = torch.full_like(batch.error[:1], self.loser).squeeze()
        if self.sdpo is not None:
            factor = factor * safeguard(batch, self.sdpo)
        loss, metrics = self.pair.loss(scale_losers(batch, factor), reduce_mean, state)  # (P,)
        metrics = metrics | {"lose_scale": factor.detach().expand(len(loss))}
        if self.sft:
            denoise = _winners_error(batch)
            loss, metrics = loss + self.sft * denoise, metrics | {"sft_term": denoise.detach()}
        if self.anchor:
            on_data = self.anchor_on == "data"
            apart = pair_units(
                batch, _distance(batch) if on_data else extra_of(batch, "rollout_distance", "anchor")
            )
            loss, metrics = loss + self.anchor * apart, metrics | {"anchor_term": apart.detach()}
        return loss, metrics

    def units(self, batch: Denoised, values: Tensor) -> Tensor:
        """See Objective.units."""
        return self.pair.units(batch, values)


def _winners_error(batch: Denoised) -> Tensor:
    """(P,) error of the winner; of a soft label the expected one."""
    p = split_pairs(batch)
    return p.expected(p.weight_w * p.error_w, p.weight_l * p.error_l)


def _distance(batch: Denoised) -> Tensor:
    """(N,) mean squared distance of policy and reference predictions."""
    apart = tensors_of(batch, "anchor").pred - reference_of(batch, "anchor")
    return apart.square().flatten(1).mean(1).to(batch.error.dtype)
