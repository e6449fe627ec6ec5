"""The times of a sampling run, with signal and noise at every state on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from diffalign.diffusion.process import Process

Final = Literal["first", "clean"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """S steps between S + 1 states, noisiest first; all on the host, so that nothing waits for a device."""

    times: Tensor
    """(S,) times of the process that the network is asked at: int64 for VP, float32 sigma for flow."""
    end: float
    """Time of the last state, at which the network is asked by judges of noisy latents only."""
    signal: Tensor
    """(S + 1,) float64 a of each state."""
    noise: Tensor
    """(S + 1,) float64 s of each state."""

    def __post_init__(self) -> None:
        """Check that it goes from noise to picture."""
        if not bool((self.noise[1:] < self.noise[:-1]).all()):
            raise ValueError(
                f"a schedule must fall from noise to picture; its noise is {self.noise.tolist()}"
            )

    def __len__(self) -> int:
        return len(self.times)

    def time(self, state: int) -> Tensor:
        """Scalar time of a state, 0 the noisiest and S the last."""
        return self.times[state] if state < len(self) else self.times.new_tensor(self.end)


def vp_schedule(process: Process, times: Sequence[int], stride: int, final: Final = "first") -> Schedule:
    """DDIM's schedule: each step goes from t to t - stride.

    Args:
        process: a VP process.
        times: falling training timesteps; the k-th and the next one are ``stride`` apart.
        stride: training timesteps of one step.
        final: where t - stride below 0 leads: to timestep 0, which has noise left (DDPO, SPO, LPO; also what
            diffusers does for SD1.5), or to the clean picture (diffusers with set_alpha_to_one).

    Raises:
        ValueError: the process is rectified flow.
    """
    if process.alphas_cumprod is None:
        raise ValueError("a DDIM schedule is for VP models; rectified flow takes flow_schedule")
    bar = process.alphas_cumprod.double().cpu()
    t = torch.tensor(times)
    later = t[-1] - stride
    end = int(later.clamp(min=0))
    last = torch.ones(1).double() if later < 0 and final == "clean" else bar[end].view(1)
    every = torch.cat([bar[t], last])
    return Schedule(times=t, end=end, signal=every.sqrt(), noise=(1 - every).sqrt())


def flow_schedule(sigmas: Sequence[float] | Tensor) -> Schedule:
    """Rectified flow's schedule of (S + 1,) falling sigmas, the last one usually 0."""
    sigma = torch.as_tensor(sigmas)
    return Schedule(
        times=sigma[:-1].float(), end=float(sigma[-1]), signal=1 - sigma.double(), noise=sigma.double()
    )


def pipeline_schedule(scheduler: Any, process: Process, steps: int, final: Final | None = None) -> Schedule:
    """Schedule by which a pipeline would sample, with its spacing and shift.

    States lie at the times that the network is asked at. Diffusers' DDIM steps to t - T // S instead, which
    is another place by a few timesteps where S does not divide T.

    Args:
        scheduler: a diffusers scheduler; it is left as it is.
        process: process of the pipeline's model.
        steps: S.
        final: see ``vp_schedule``; None takes what the scheduler is set to.
    """
    if process.is_flow:
        own = type(scheduler).from_config(scheduler.config)
        own.set_timesteps(steps)
        return flow_schedule(own.sigmas)
    from diffusers import DDIMScheduler

    own = DDIMScheduler.from_config(scheduler.config)
    own.set_timesteps(steps)
    to_one = own.config.set_alpha_to_one
    return vp_schedule(
        process, own.timesteps.tolist(), process.steps // steps, final or ("clean" if to_one else "first")
    )
