"""Further figures of a batch that single objectives declare: more draws of its images, and own pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from diffalign.diffusion.corrupt import Corrupted, Predict, draw_seed, seeded_noise, sides
from diffalign.diffusion.process import Process
from diffalign.diffusion.spaces import native_error
from diffalign.diffusion.truncated import grid_time, teacher_steps

ROLLOUT_STEPS = 10
"""Deterministic steps of a rollout."""
Context = Callable[[], AbstractContextManager[object]]


def rollout_distance(
    sample: Predict, predict: Predict, reference: Context, noisy: Corrupted, process: Process
) -> Tensor:
    """(N,) mean squared distance of policy and reference on noised pictures of the policy's own making.

    The pictures are made without guidance and without gradient, from a noise of their own, and noised to the
    times of ``noisy``: the distance of the two where the policy is, not where the data are.

    Args:
        sample: the policy's native prediction, without gradient.
        predict: native prediction of whichever network is active.
        reference: context in which that is the reference.
        noisy: the batch; its times and seeds are used.
        process: noise process of both.
    """
    each = list(zip(noisy.units, sides(noisy.units), strict=True))
    start, noise = (
        seeded_noise([draw_seed(tag, *row) for row in each], noisy.x_t)
        for tag in ("rollout", "rollout noise")
    )
    x_t = process.add_noise(rollout(start, sample, process), noise, noisy.t)
    with torch.no_grad(), reference():
        wanted = predict(x_t, noisy.t)
    return native_error(predict(x_t, noisy.t), wanted)


@torch.no_grad()
def rollout(start: Tensor, sample: Predict, process: Process, steps: int = ROLLOUT_STEPS) -> Tensor:
    """(N, C, ..., H, W) clean latents that a network makes of (N, C, ..., H, W) Gaussian noise."""
    places = torch.arange(steps - 1, -1, -1, device=start.device)
    times = [grid_time(place.expand(len(start)), steps, process) for place in places]
    return teacher_steps(start, times, process, sample)[1]


@torch.no_grad()
def further_errors(
    corrupt: Callable[[Sequence[int]], Corrupted],
    error: Callable[[Corrupted], Tensor],
    reference: Context,
    units: Sequence[int],
    draws: int,
) -> tuple[Tensor, Tensor]:
    """(N,) mean errors of policy and reference over further draws of (t, noise).

    Args:
        corrupt: the batch's clean latents, corrupted by these seeds of its rows' units.
        error: (N,) errors of whichever network is active.
        reference: context in which that is the reference.
        units: seed of each row's unit.
        draws: how many.
    """
    both = []
    for k in range(draws):
        noisy = corrupt([draw_seed("further", k, unit) for unit in units])
        own = error(noisy)
        with reference():
            both.append(torch.stack([own, error(noisy)]))
    policy, other = torch.stack(both).mean(0).unbind()
    return policy, other
