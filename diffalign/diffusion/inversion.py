"""Inversion: the noise that a model itself would start from to arrive at a given picture.

The state is the noise tau of x = a x0 + s tau rather than x. A DDIM step from level (a, s) to (a', s') with
predicted noise e (arXiv:2010.02502, eq. 12, run backwards) is then a mix,

    tau' = e + r (tau - e),    r = (a' s) / (a s'),

which divides by nothing small: the first step from the clean picture (s = 0) gives tau' = e, and the last one
lands on t exactly, because x_t is put together from x0 and tau with the coefficients of t.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffalign.device import send
from diffalign.diffusion.corrupt import Predict
from diffalign.diffusion.process import Process

Legacy = Literal["none", "diffusers-0.20", "diffusers-0.42"]
Draw = Callable[[int], Tensor]
"""Number of the step to (N, C, ..., H, W) Gaussian noise."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """K steps of N rows, all tensors (K, N). Levels are times of the process; of VP, -1 is clean."""

    start: Tensor
    """Level that a step leaves."""
    end: Tensor
    """Level that it reaches."""
    ask: Tensor
    """Time at which the network is asked about x at the start."""
    again: Tensor
    """Time at which it is asked about the x that the step would reach (ReNoise)."""
    noisier: Tensor
    """Pairs of levels whose posterior variance eta multiplies: the noisier one,"""
    cleaner: Tensor
    """and the cleaner one."""
    active: Tensor
    """Whether the row makes this step; rows that have arrived wait."""

    def to(self, device: torch.device) -> Grid:
        """Copy to a device without making the host wait."""
        return Grid(**{name: send(value, device) for name, value in vars(self).items()})


def exact_grid(
    t: Tensor, steps: int, process: Process, *, own: bool, ask_at: Literal["start", "end"], highest: float
) -> Grid:
    """Grid that ends on (N,) times t, which are on the host.

    Args:
        t: where each row must land.
        steps: n, points of the grid.
        process: noise process.
        own: each row has n equal steps to its own t; else all rows share points at k / n of the whole time,
            and each makes a last, shorter step onto its t.
        ask_at: whether the network is asked with the time of a step's start or of its end.
        highest: largest share of the time that t can have; steps beyond it are left out. It must not depend
            on the batch, for processes that share a model must ask it equally often.
    """
    k = torch.arange(steps + 1, dtype=torch.float64)[:, None] / steps  # (n + 1, 1)
    if process.is_flow:
        points = (k * t.double() if own else k.minimum(t.double())).to(t.dtype)
    else:
        share = k * (t + 1) if own else (k * process.steps)
        points = (share.round().long() - 1).minimum(t)
    if not own:
        points = points[: 1 + min(steps, math.ceil(highest * steps - 1e-9))]
    points[-1] = t
    start, end = points[:-1], points[1:]
    first = start if process.is_flow else start.clamp(min=0)
    return Grid(
        start=start, end=end, ask=first if ask_at == "start" else end, again=end, noisier=end, cleaner=start,
        active=start < end,
    )  # fmt: skip


def legacy_grid(t: Tensor, steps: int, process: Process, legacy: Legacy) -> Grid:
    """Grid of the released InPO and SmPO code with DDIMInverseScheduler of diffusers 0.20 or 0.42.

    All points below t are used, so that the last level is not t: one step past the last point with 0.20
    (which asks first at a negative time), the last point itself with 0.42. The clean picture is taken to be
    at level 0.
    """
    width = process.steps // steps
    old = legacy == "diffusers-0.20"
    point = (torch.arange(steps) * width + (1 - width if old else 1))[:, None].expand(-1, len(t))
    start, end = (point, point + width) if old else (point - width, point)
    last = process.steps - 1
    return Grid(
        start=start.clamp(0, last), end=end.clamp(0, last), ask=point, again=point,
        noisier=(point + width).clamp(0, last), cleaner=point.clamp(0, last), active=point < t,
    )  # fmt: skip


def level(process: Process, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Signal a and noise s at (N,) levels, in the shape that multiplies rows of ``like``."""
    a, s = process.coefficients(t if process.is_flow else t.clamp(min=0))
    clean = t <= 0 if process.is_flow else t < 0
    shape = (-1,) + (1,) * (like.ndim - 1)
    a, s = torch.where(clean, torch.ones_like(a), a), torch.where(clean, torch.zeros_like(s), s)
    return a.to(like.dtype).view(shape), s.to(like.dtype).view(shape)


@torch.no_grad()
def invert(
    x0: Tensor,
    grid: Grid,
    process: Process,
    predict: Predict,
    *,
    midpoint: bool = False,
    eta: float = 0.0,
    draw: Draw | None = None,
) -> tuple[Tensor, Tensor]:
    """Follow the model from (N, C, ..., H, W) clean latents up the grid.

    Args:
        x0: scaled latents.
        grid: levels and times, on the device of ``x0``.
        process: noise process.
        predict: native prediction at (N,) times; asked once per step, or twice with ``midpoint``.
        midpoint: average the predicted noise at both ends of a step (ReNoise, arXiv:2403.14602).
        eta: after each step add eta times the DDIM posterior's standard deviation in noise.
        draw: noise of each step, needed where eta is above 0.

    Returns:
        x and tau at each row's last level.
    """
    a, s = level(process, grid.start[0], x0)
    tau = torch.where(s > 0, (1 - a) * x0 / s.clamp(min=1e-12), torch.zeros_like(x0))
    x = x0
    for k in range(len(grid.start)):
        here, there = level(process, grid.start[k], x0), level(process, grid.end[k], x0)
        active, ask = grid.active[k].view_as(here[0]), grid.ask[k]
        at = here[0] * x0 + here[1] * tau
        eps = _noise(process, predict(at, ask), at, here, ask)
        new = torch.where(active, _mix(eps, tau, here, there), tau)
        if midpoint:
            y, again = there[0] * x0 + there[1] * new, grid.again[k]
            eps = (eps + _noise(process, predict(y, again), y, there, again)) / 2
            new = torch.where(active, _mix(eps, tau, here, there), tau)
        if eta and draw is not None:
            spread = posterior_std(process, grid.noisier[k], grid.cleaner[k], x0)
            new = torch.where(active, new + eta * spread / there[1] * draw(k), tau)
        tau, x = new, torch.where(active, there[0] * x0 + there[1] * new, x)
    return x, tau


def _noise(process: Process, pred: Tensor, x: Tensor, at: tuple[Tensor, Tensor], asked: Tensor) -> Tensor:
    """Predicted eps at level (a, s) = ``at``; a step with it rotates v models, and is Euler's for flow."""
    a, s = at
    if process.prediction == "v":
        return s * x + a * pred
    if process.prediction == "flow":
        return x + a * pred
    # x0 says nothing of the noise at s = 0, so that it is read at the time that was asked for
    return process.convert(pred, x, asked, "eps")


def _mix(eps: Tensor, tau: Tensor, here: tuple[Tensor, Tensor], there: tuple[Tensor, Tensor]) -> Tensor:
    """tau' of the module's formula."""
    (a, s), (a_next, s_next) = here, there
    return eps + (a_next * s) / (a * s_next) * (tau - eps)


def posterior_std(process: Process, noisier: Tensor, cleaner: Tensor, like: Tensor) -> Tensor:
    """S.d. of q(x_cleaner | x_noisier, x0) at (N,) levels (arXiv:2010.02502, eq. 16 with eta 1).

    0 where the cleaner level is the clean picture.
    """
    (a, s), (a_clean, s_clean) = level(process, noisier, like), level(process, cleaner, like)
    added = (s.square() - (a / a_clean * s_clean).square()).clamp(min=0)
    return s_clean / s * added.sqrt()
