"""Corruptors: at which noisy latents policy and reference are compared.

Every draw is seeded by (run seed, epoch, unit), so that a batch does not depend on the number of processes,
on accumulation, or on what was drawn before: runs resume exactly and reference errors can be cached. A new
corruptor is one file in this folder that registers itself.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from diffalign.device import send
from diffalign.diffusion.process import Prediction, Process
from diffalign.diffusion.timesteps import TimestepSampler
from diffalign.registry import Registry

Predict = Callable[[Tensor, Tensor], Tensor]
"""(x, t) to the native prediction: N latents in the rows' order, N times; without gradient."""
Network = Literal["policy", "reference", "ema"]
"""Whose prediction a corruptor asks for."""


@dataclass(frozen=True, kw_only=True)
class Corrupted:
    """N noisy latents and what should be predicted of them."""

    x_t: Tensor
    """(N, C, ..., H, W)."""
    t: Tensor
    """(N,) times of the process."""
    target: Tensor
    """(N, C, ..., H, W) in the native prediction space."""
    units: tuple[int, ...] = ()
    """Seed of each row's comparison unit; spaces that draw noise of their own need it."""


@dataclass(frozen=True, kw_only=True)
class Clean:
    """N rows to be corrupted; see ``Corruptor.__call__``."""

    x0: Tensor
    units: tuple[int, ...]
    process: Process
    timesteps: TimestepSampler
    predict: Predict | None

    def asked(self, network: str) -> Predict:
        """The prediction that a corruptor asks ``network`` for.

        Raises:
            ValueError: none was given.
        """
        if self.predict is None:
            raise ValueError(f"this corruptor asks the {network}: the trainer must give it predict")
        return self.predict


@dataclass(frozen=True, kw_only=True)
class Corruptor(ABC):
    """Chooses t and x_t for every row, and says what is to be predicted there. Subclasses have a ``name``."""

    derived: ClassVar[frozenset[Prediction]] = frozenset()
    """Kinds of models for which the form here is derived: published for others only."""

    @property
    def asks(self) -> Network | None:
        """Whose prediction ``__call__`` must be given; None asks nobody."""
        return None

    def check(self, process: Process) -> None:  # noqa: B027 (most corruptors serve every process)
        """Refuse a process that this corruptor cannot serve, before training.

        Raises:
            ValueError: says what does not fit and what to change.
        """

    @abstractmethod
    def corrupt(self, rows: Clean) -> Corrupted:
        """What ``__call__`` does, of its arguments together.

        Raises:
            ValueError: a prediction is needed and missing.
        """

    def __call__(
        self,
        x0: Tensor,
        units: Sequence[int],
        process: Process,
        timesteps: TimestepSampler,
        predict: Predict | None = None,
    ) -> Corrupted:
        """Corrupt scaled latents.

        Args:
            x0: (N, C, ..., H, W) scaled latents.
            units: seed of each row's comparison unit; rows of a unit share t.
            process: noise process of the model.
            timesteps: distribution of t.
            predict: prediction of the network that ``asks`` names.

        Raises:
            ValueError: ``predict`` is needed and missing.
        """
        return self.corrupt(
            Clean(x0=x0, units=tuple(units), process=process, timesteps=timesteps, predict=predict)
        )


corruptors: Registry[type[Corruptor]] = Registry("corruptor", package="diffalign.diffusion")
"""All corruptors by name; found by scanning this folder."""


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


def sides(units: Sequence[int]) -> list[int]:
    """Place of each row within its unit: 0 for the first row of a unit, 1 for the second, and so on."""
    seen: dict[int, int] = {}
    places = []
    for unit in units:
        seen[unit] = seen.get(unit, -1) + 1
        places.append(seen[unit])
    return places


def draw_times(units: Sequence[int], process: Process, timesteps: TimestepSampler) -> Tensor:
    """(N,) times on the host, one per unit."""
    return timesteps.times(seeded_uniform([draw_seed("t", u) for u in units]), process)


@corruptors.register("shared_noise")
@corruptors.register("independent_noise")
@dataclass(frozen=True, kw_only=True)
class GaussianNoise(Corruptor):
    """Fresh Gaussian noise; t is shared within a comparison unit unless asked otherwise."""

    name: Literal["shared_noise", "independent_noise"] = "shared_noise"
    """shared_noise: one noise per unit (DPO and most others); independent_noise: one per image (KTO,
    RankDPO).
    """
    time_per: Literal["unit", "image"] = "unit"
    """unit: one t for all images of a comparison; image: one for each (KTO, where images share a record)."""

    def corrupt(self, rows: Clean) -> Corrupted:
        """See Corruptor."""
        x0, process, places = rows.x0, rows.process, sides(rows.units)
        each = list(zip(rows.units, places, strict=True))
        if self.time_per == "unit":
            t = draw_times(rows.units, process, rows.timesteps)
        else:
            t = rows.timesteps.times(seeded_uniform([draw_seed("t", u, side) for u, side in each]), process)
        t = send(t, x0.device)
        own = self.name == "independent_noise"
        noise = seeded_noise([draw_seed("noise", u, side if own else 0) for u, side in each], x0)
        return Corrupted(
            x_t=process.add_noise(x0, noise, t), t=t, target=process.target(x0, noise, t), units=rows.units
        )
