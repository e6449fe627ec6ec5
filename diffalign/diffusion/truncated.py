"""Truncated self-sampling (Self-NPO): a few unconditional steps of a teacher make what is learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor

from diffalign.device import send
from diffalign.diffusion.corrupt import (
    Clean,
    Corrupted,
    Corruptor,
    Network,
    Predict,
    corruptors,
    draw_seed,
    seeded_noise,
    seeded_uniform,
)
from diffalign.diffusion.process import Prediction, Process


@corruptors.register("truncated_sampling")
@dataclass(frozen=True, kw_only=True)
class TruncatedSampling(Corruptor):
    """Targets of Self-NPO (arXiv:2505.11777, as released).

    A latent is noised to a point of a DDIM grid, ``steps`` deterministic steps of the teacher lead to x_t
    and to the clean picture x0 that it sees there; x_t is noised on to a later s, and from x_s the policy is
    to find that x0. The released code guides the teacher with scale -1: its unconditional prediction.
    """

    derived: ClassVar[frozenset[Prediction]] = frozenset({"v", "x0", "flow"})

    name: Literal["truncated_sampling"] = "truncated_sampling"
    network: Literal["ema", "policy", "reference"] = "ema"
    """Teacher: the averaged weights (decay 0.999 as published), the policy as it is, or the reference."""
    conditioning: Literal["empty", "own"] = "empty"
    """Prompt of the teacher: the empty one, as published, or the image's own."""
    grid: int = 25
    """Points of the DDIM grid over the whole time."""
    steps: int = 5
    """Steps of the teacher; it is asked once more at the end of them."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.grid < 2 or self.steps < 1:
            raise ValueError(
                f"grid is {self.grid} and steps {self.steps}; at least 2 and 1 are needed (25 and 5)"
            )

    @property
    def asks(self) -> Network:
        """See Corruptor."""
        return self.network

    def corrupt(self, rows: Clean) -> Corrupted:
        """Corrupt scaled latents of real pictures; the start is the grid point nearest to a drawn time.

        Raises:
            ValueError: no teacher is given.
        """
        predict = rows.asked("teacher")
        x0, units, process, timesteps = rows.x0, rows.units, rows.process, rows.timesteps
        share = timesteps.quantile(seeded_uniform([draw_seed("t", u) for u in units]))  # (N,) in (0, 1]
        place = (share * self.grid).long().clamp(0, self.grid - 1)
        later = seeded_uniform([draw_seed("later", u) for u in units])  # on the host, as all times are here
        places = [send(grid_time(place - i, self.grid, process), x0.device) for i in range(self.steps + 1)]
        t = grid_time(place - self.steps, self.grid, process)
        s = send(later_time(t, later, process), x0.device)
        noise, more = (
            seeded_noise([draw_seed(tag, u) for u in units], x0) for tag in ("noise", "more noise")
        )
        with torch.no_grad():
            x_t, seen = teacher_steps(process.add_noise(x0, noise, places[0]), places, process, predict)
            x_s = renoise(x_t, places[-1], s, more, process)
            target = target_of(seen, x_s, s, process)
            return Corrupted(x_t=x_s, t=s, target=target, units=units)


def grid_time(place: Tensor, grid: int, process: Process) -> Tensor:
    """(N,) times of (N,) places on the grid; places below 0 are the clean end."""
    if process.is_flow:
        return ((place + 1).clamp(min=0) / grid).float()
    return ((place + 1) * (process.steps // grid) - 1).clamp(0, process.steps - 1)


def later_time(t: Tensor, u: Tensor, process: Process) -> Tensor:
    """(N,) times drawn uniformly after (N,) times t by (N,) uniform numbers u."""
    if process.is_flow:
        return (t + (1 - t) * (1 - u)).clamp(1e-4, 1.0).float()
    last = process.steps - 1
    return (t + 1 + (u * (last - t)).long()).clamp(max=last)


def teacher_steps(
    x: Tensor, times: Sequence[Tensor], process: Process, predict: Predict
) -> tuple[Tensor, Tensor]:
    """Deterministic DDIM steps from times[0] over all of them; (x_t, x0) at the last, x0 as seen there."""
    for t, after in pairwise(times):
        pred = predict(x, t)
        clean, noise = process.convert(pred, x, t, "x0"), process.convert(pred, x, t, "eps")
        moved = process.add_noise(clean, noise, after)
        x = torch.where(_wide(after == t, x), x, moved)  # rows that reached the clean end stay as they are
    return x, process.convert(predict(x, times[-1]), x, times[-1], "x0")


def renoise(x_t: Tensor, t: Tensor, s: Tensor, noise: Tensor, process: Process) -> Tensor:
    """x_s = (a_s / a_t) x_t + sqrt(sigma_s^2 - (a_s / a_t)^2 sigma_t^2) noise, for (N,) times s after t."""
    (a_t, sigma_t), (a_s, sigma_s) = process.coefficients(t), process.coefficients(s)
    ratio = a_s / a_t
    spread = (sigma_s.square() - (ratio * sigma_t).square()).clamp(min=0).sqrt()
    return _wide(ratio.to(x_t.dtype), x_t) * x_t + _wide(spread.to(x_t.dtype), x_t) * noise


def target_of(x0: Tensor, x_s: Tensor, s: Tensor, process: Process) -> Tensor:
    """Native prediction at (x_s, s) that means the clean picture x0."""
    a, sigma = process.coefficients(s)
    noise = (x_s - _wide(a.to(x0.dtype), x0) * x0) / _wide(sigma.to(x0.dtype), x0)
    return process.target(x0, noise, s)


def _wide(values: Tensor, like: Tensor) -> Tensor:
    """(N,) values in the shape that multiplies ``like``'s rows."""
    return values.view(-1, *(1,) * (like.ndim - 1))
