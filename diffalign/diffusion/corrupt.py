"""Corruptors: at which noisy latents policy and reference are compared.

Every draw is seeded by (run seed, epoch, unit), so that a batch does not depend on the number of processes,
on
accumulation, or on what was drawn before: runs resume exactly and reference errors can be cached.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffalign.device import send
from diffalign.diffusion.process import Process
from diffalign.diffusion.timesteps import TimestepSampler


@dataclass(frozen=True, kw_only=True)
class Corrupted:
    """N noisy latents and what should be predicted of them."""

    x_t: Tensor
    """(N, C, ..., H, W)."""
    t: Tensor
    """(N,) times of the process."""
    target: Tensor
    """(N, C, ..., H, W) in the native prediction space."""


def draw_seed(*parts: int | str) -> int:
    """Well-mixed 63-bit seed of a tuple; CPU generators use the low 32 bits only, so neighbours must differ
    there.
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seeded_uniform(seeds: Sequence[int]) -> Tensor:
    """(B,) float64 uniform numbers in [0, 1), one per seed, on the CPU."""
    generator = torch.Generator()
    rows = [torch.rand((), generator=generator.manual_seed(s), dtype=torch.float64) for s in seeds]
    return torch.stack(rows) if rows else torch.zeros(0, dtype=torch.float64)


def seeded_noise(seeds: Sequence[int], like: Tensor) -> Tensor:
    """Gaussian noise of ``like``'s row shape, one row per seed, on its device; drawn in fp32."""
    generator = torch.Generator(like.device)
    shape = like.shape[1:]
    rows = [torch.randn(shape, generator=generator.manual_seed(s), device=like.device) for s in seeds]
    return torch.stack(rows).to(like.dtype) if rows else like.clone()


@dataclass(frozen=True, kw_only=True)
class GaussianNoise:
    """Fresh Gaussian noise; t is always shared within a comparison unit."""

    name: Literal["shared_noise", "independent_noise"] = "shared_noise"
    """shared_noise: one noise per unit (DPO and most others); independent_noise: one per image (KTO,
    RankDPO).
    """

    def __call__(
        self, x0: Tensor, units: Sequence[int], process: Process, timesteps: TimestepSampler
    ) -> Corrupted:
        """Corrupt (N, C, ..., H, W) scaled latents; ``units`` holds the seed of each row's unit."""
        t = timesteps.times(seeded_uniform([draw_seed("t", u) for u in units]), process)
        t = send(t, x0.device)
        noise = seeded_noise([draw_seed("noise", u, side) for u, side in self._sides(units)], x0)
        return Corrupted(x_t=process.add_noise(x0, noise, t), t=t, target=process.target(x0, noise, t))

    def _sides(self, units: Sequence[int]) -> list[tuple[int, int]]:
        if self.name == "shared_noise":
            return [(u, 0) for u in units]
        seen: dict[int, int] = {}
        sides = []
        for u in units:
            seen[u] = seen.get(u, -1) + 1
            sides.append((u, seen[u]))
        return sides
