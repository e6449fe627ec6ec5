"""SDPO: a safeguard of the winner around any pair objective."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from diffalign.objectives.base import DataKind, Denoised, Metrics, Objective, ReduceMean, State, objectives
from diffalign.objectives.dpo import DPO
from diffalign.objectives.wrapping import adopt, safeguard, scale_losers


@objectives.register("sdpo")
@dataclass(frozen=True, kw_only=True)
class SDPO(Objective):
    """Push losers only as far as winners do not suffer (Diffusion-SDPO, arXiv:2511.03317).

    The pair objective within is unchanged in value; the gradient of every loser's error is multiplied by one
    lambda for the local batch (see ``safeguard``), to first order the largest that lowers the winners' error
    by at least the share mu of what they alone would. Where winners' and losers' residuals do not conflict it
    is 1.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2511.03317"
    data: ClassVar[DataKind] = "pairs"
    needs: ClassVar[frozenset[str]] = frozenset({"tensors"})
    coupled: ClassVar[bool] = True

    pair: Objective = field(default_factory=DPO)
    """The pair objective within: a block with its name and options."""
    mu: float = 0.9
    """Safety, 0 to 1: 0.9 for dpo on SD1.5, 0.6 on SDXL, 0.2 for dspo; 1 never pushes losers."""

    def __post_init__(self) -> None:
        """Check ranges, and take over what the objective within declares."""
        self._require(0 <= self.mu <= 1, "mu", "in [0, 1]")
        adopt(self, self.pair, {"tensors"}, reference=False, coupled=True)

    def loss(
        self, batch: Denoised, reduce_mean: ReduceMean = lambda x: x, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        """(P,) losses of P pairs; see Objective.loss."""
        factor = safeguard(batch, self.mu)
        loss, metrics = self.pair.loss(scale_losers(batch, factor), reduce_mean, state)
        return loss, metrics | {"lose_scale": factor.expand(len(loss))}

    def units(self, batch: Denoised, values: Tensor) -> Tensor:
        """See Objective.units."""
        return self.pair.units(batch, values)
