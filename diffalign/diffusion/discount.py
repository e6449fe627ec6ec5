"""The temporal discount of the dense-reward view: early denoising steps count more."""

from __future__ import annotations

from torch import Tensor

DENOISING_STEPS = 50
"""Steps of a whole trajectory that the discount counts in (arXiv:2402.08265)."""


def temporal_discount(
    t: Tensor, gamma: float, *, steps: int = DENOISING_STEPS, timesteps: int = 1000
) -> Tensor:
    """(N,) float64 weights w = K gamma^k / sum_j gamma^j, j below K, whose mean over uniform t is 1.

    k is the denoising step, 0 the noisiest of K, that a time falls into: floor((T - 1 - t) K / T).

    Args:
        t: (N,) times: integers below T of a VP model, or sigma in [0, 1] of flow.
        gamma: discount of each further step, in (0, 1].
        steps: K.
        timesteps: T of a VP model.
    """
    if t.is_floating_point():
        k = ((1 - t.double()) * steps).floor()
    else:
        k = ((timesteps - 1 - t) * steps).div(timesteps, rounding_mode="floor").double()
    whole = sum(gamma**j for j in range(steps))
    return gamma ** k.clamp(0, steps - 1) * (steps / whole)
