"""MaPO: margin-aware preference optimisation without a reference."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from diffalign.objectives.base import DataKind, Denoised, Metrics, Objective, ReduceMean, State, objectives
from diffalign.objectives.pairs import pair_metrics, pair_units, split_pairs

SMALL = 0.2  # below it the series of log phi is exact to double precision and free of cancellation


@objectives.register("mapo")
@dataclass(frozen=True, kw_only=True)
class MaPO(Objective):
    """Denoise the winner, and prefer it by a bounded margin (arXiv:2406.06424, and its released code).

    With phi(u) = u / (e^u - 1), the code's loss is e_w - beta log sigma(T (phi(s e_w) - phi(s e_l))); for
    small errors that is a reference-free DPO of canonical beta T s (500). Version 2 of the paper writes
    e_w - (1 / beta) log sigma(phi(s e_w)^beta - phi(s e_l)^beta). A soft label mixes both directions. Nothing
    holds the policy to where it started: watch long runs.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2406.06424"
    data: ClassVar[DataKind] = "pairs"
    needs_reference: ClassVar[bool] = False

    form: Literal["code", "v2"] = "code"
    """code: the released implementation; v2: the formula of the paper's second version (beta 128 to 1024)."""
    beta: float = 0.1
    """code: weight of the margin beside the winner's error; v2: power of phi, the weight is its inverse."""
    steps: float = 1000.0
    """T, which multiplies the margin of the code form."""
    scale: float = 0.5
    """s, which multiplies errors before phi (the code's snr_value)."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("beta", "steps", "scale"):
            self._require(0 < getattr(self, name) < math.inf, name, "above 0 and finite")

    def loss(
        self, batch: Denoised, reduce_mean: ReduceMean = lambda x: x, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        """(P,) losses of P pairs; see Objective.loss."""
        pairs = split_pairs(replace(batch, ref_error=None, margin=None))
        e_w, e_l = pairs.weight_w * pairs.error_w, pairs.weight_l * pairs.error_l  # (P,)
        win, lose = log_link(self.scale * e_w), log_link(self.scale * e_l)
        if self.form == "code":
            z, weight = self.steps * (torch.expm1(win) - torch.expm1(lose)), self.beta
        else:
            z, weight = (self.beta * win).exp() - (self.beta * lose).exp(), 1 / self.beta
        ratio = pairs.soften(lambda x: F.softplus(-x), z)
        denoise = pairs.expected(e_w, e_l)
        scores = {"win_score": win.detach().exp(), "lose_score": lose.detach().exp()}
        return denoise + weight * ratio, pair_metrics(pairs, z) | scores | {"ratio_loss": ratio.detach()}

    def units(self, batch: Denoised, values: Tensor) -> Tensor:
        """See Objective.units."""
        return pair_units(batch, values)


def log_link(u: Tensor) -> Tensor:
    """log phi(u) = log(u / (e^u - 1)) of u >= 0; value and gradient hold from 0 to where e^u overflows."""
    x = u * u
    series = -u / 2 - x / 24 * (1 - x / 120 * (1 - x / 63 * (1 - 3 * x / 160)))
    large = u.clamp(min=SMALL)  # the unused branch must not make infinite gradients at 0
    return torch.where(u < SMALL, series, large.log() - large - (-torch.expm1(-large)).log())
