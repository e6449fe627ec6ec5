"""DDIM inversion (InPO): look at the latents that the model itself connects with the picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from diffalign.device import send
from diffalign.diffusion.corrupt import (
    Clean,
    Corrupted,
    Corruptor,
    corruptors,
    draw_seed,
    draw_times,
    seeded_noise,
    sides,
)
from diffalign.diffusion.inversion import Legacy, exact_grid, invert, legacy_grid
from diffalign.diffusion.process import Prediction, Process


@dataclass(frozen=True, kw_only=True)
class Inversion(Corruptor):
    """What the two inversions share. The noise differs between the images of a unit, t does not.

    Published for eps models. The forms for v (a rotation by the network's velocity), flow (Euler steps of the
    ODE) and x0 models are derived.
    """

    derived: ClassVar[frozenset[Prediction]] = frozenset({"v", "x0", "flow"})

    steps: int = 10
    """Points of the grid over the whole time."""
    network: Literal["policy", "reference"] = "policy"
    """Whose inversion: the policy as it is (as released; targets move with it), or the reference."""
    grid: Literal["shared", "own"] = "shared"
    """shared: points at k / steps of the whole time, and a last step onto t (a row needs only those below its
    t, but a batch costs as many as the highest t); own: that many equal steps to each row's t, so that no
    evaluation is idle and half as many are as fine on average.
    """
    ask_at: Literal["start", "end"] = "start"
    """Time that the network is told: that of a step's start, where its latents are, or of its end, as later
    diffusers releases do.
    """
    legacy: Legacy = "none"
    """Only to reproduce released runs: the scheduler of diffusers-0.20 or diffusers-0.42, which both miss t
    (eps models only; grid and ask_at are then that scheduler's).
    """

    midpoint: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; it must be at least 1 (10 is usual)")

    @property
    def asks(self) -> Literal["policy", "reference"]:
        """See Corruptor."""
        return self.network

    def check(self, process: Process) -> None:
        """See Corruptor."""
        if self.legacy != "none" and process.prediction != "eps":
            raise ValueError(
                f"corruptor.legacy is {self.legacy}, which exists for eps models only; this one predicts "
                f"{process.prediction}: use legacy: none"
            )
        if not process.is_flow and self.steps > process.steps:
            raise ValueError(f"corruptor.steps is {self.steps}; the process has {process.steps} times only")

    def corrupt(self, rows: Clean) -> Corrupted:
        """See Corruptor."""
        predict = rows.asked(self.network)
        x0, units, process, timesteps = rows.x0, rows.units, rows.process, rows.timesteps
        self.check(process)
        t = draw_times(units, process, timesteps)  # on the host, so that the grid needs no look at the device
        if self.legacy == "none":
            points = exact_grid(
                t, self.steps, process, own=self.grid == "own", ask_at=self.ask_at, highest=timesteps.highest
            )
        else:
            points = legacy_grid(t, self.steps, process, self.legacy)

        def draw(step: int) -> Tensor:
            places = zip(units, sides(units), strict=True)
            return seeded_noise([draw_seed("inversion", u, side, step) for u, side in places], x0)

        x_t, tau = invert(
            x0,
            points.to(x0.device),
            process,
            predict,
            midpoint=self.midpoint,
            eta=self.extra_noise,
            draw=draw,
        )
        t = send(t, x0.device)
        if self.legacy == "none":
            x_t = process.add_noise(x0, tau, t)
        else:
            tau = implied_noise(x_t, x0, t, process)
        return Corrupted(x_t=x_t, t=t, target=process.target(x0, tau, t), units=units)

    @property
    def extra_noise(self) -> float:
        """Strength of the noise after each step."""
        return 0.0


def implied_noise(x_t: Tensor, x0: Tensor, t: Tensor, process: Process) -> Tensor:
    """tau = (x_t - a x0) / s at (N,) times, in the shape of x_t: what released code calls the target."""
    a, s = (v.to(x0.dtype).view(-1, *(1,) * (x0.ndim - 1)) for v in process.coefficients(t))
    return (x_t - a * x0) / s


@corruptors.register("ddim_inversion")
@dataclass(frozen=True, kw_only=True)
class DDIMInversion(Inversion):
    """DDIM inversion with one evaluation per step, landing on t (InPO, arXiv:2503.18454).

    The released code ends beside t (see ``legacy``). Derived for v, x0 and flow models.
    """

    name: Literal["ddim_inversion"] = "ddim_inversion"
    eta: float = 0.0
    """Noise after each step, in standard deviations of the DDIM posterior; released InPO uses 0.1."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        if not self.eta >= 0:
            raise ValueError(f"eta is {self.eta}; it must be at least 0 (released InPO uses 0.1)")

    @property
    def extra_noise(self) -> float:
        """See Inversion."""
        return self.eta
