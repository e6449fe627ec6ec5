"""ReNoise inversion (SmPO): DDIM inversion whose steps average the predictions at both of their ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from diffalign.diffusion.corrupt import corruptors
from diffalign.diffusion.ddim_inversion import Inversion


@corruptors.register("renoise_inversion")
@dataclass(frozen=True, kw_only=True)
class RenoiseInversion(Inversion):
    """Inversion with two evaluations per step, landing on t (SmPO, arXiv:2506.02698).

    At each step y is where the prediction e1 at x leads, e2 is the prediction at y, and x moves by
    (e1 + e2) / 2 (ReNoise, arXiv:2403.14602, with one renoising). The released code ends beside t (see
    ``legacy``). Derived for v, x0 and flow models.
    """

    midpoint: ClassVar[bool] = True

    name: Literal["renoise_inversion"] = "renoise_inversion"
    steps: int = 5
    """Points of the grid over the whole time; released SmPO has 5 for SD1.5 and 10 for SDXL, the paper 9."""
