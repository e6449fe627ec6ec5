"""Pairs made on purpose: two pictures from one seed, one meant to be worse, under the plain prompt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from diffalign.data.records import BytesImage, DataError, Record
from diffalign.diffusion.corrupt import draw_seed
from diffalign.evaluate.generate import Sampling, picture_seed
from diffalign.label.captions import Perturb
from diffalign.registry import Registry


class Generator(Protocol):
    """The part of a Policy that makes pictures."""

    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], *, steps: int, guidance: float, side: int | None
    ) -> Tensor:
        """(B, 3, H, W) pictures in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class Contrast(ABC):
    """How the two pictures of a pair come to differ."""

    @abstractmethod
    def prompts(self, prompt: str, others: Sequence[str], rng: np.random.Generator) -> tuple[str, str]:
        """Prompts that the winner and the loser are made with; ``others`` are all prompts."""

    def spoil(self, picture: Tensor, rng: np.random.Generator) -> Tensor:
        """What becomes of the loser's (3, H, W) picture in [0, 1]; most leave it."""
        return picture


contrasts: Registry[type[Contrast]] = Registry("contrast")
"""Contrasts by name."""


@contrasts.register("suffix")
@dataclass(frozen=True, kw_only=True)
class Suffix(Contrast):
    """Add to the winner's prompt what is wanted (Pick-Style), to the loser's what is not (Pick-Safety)."""

    positive: str = ""
    """Added to the winner's prompt, for example " on a white background"."""
    negative: str = ""
    """Added to the loser's prompt, for example " on a red background"."""

    def __post_init__(self) -> None:
        """Refuse a contrast without difference."""
        if self.positive == self.negative:
            raise DataError(f"both suffixes are {self.positive!r}; positive and negative must differ")

    def prompts(self, prompt: str, others: Sequence[str], rng: np.random.Generator) -> tuple[str, str]:
        """See Contrast."""
        return prompt + self.positive, prompt + self.negative


@contrasts.register("perturbed")
@dataclass(frozen=True, kw_only=True)
class Perturbed(Contrast):
    """The loser is made with the prompt changed in a detail."""

    perturb: Perturb
    """Changes a prompt, for example ``world.captions.perturb`` or ``captions.perturb_words``."""

    def prompts(self, prompt: str, others: Sequence[str], rng: np.random.Generator) -> tuple[str, str]:
        """See Contrast."""
        return prompt, self.perturb(prompt, rng)


@contrasts.register("wrong_caption")
@dataclass(frozen=True, kw_only=True)
class WrongCaption(Contrast):
    """The loser is made with another of the prompts."""

    def prompts(self, prompt: str, others: Sequence[str], rng: np.random.Generator) -> tuple[str, str]:
        """See Contrast."""
        wrong = sorted({other for other in others if other != prompt})
        if not wrong:
            raise DataError("wrong_caption needs two different prompts or more")
        return prompt, wrong[int(rng.integers(len(wrong)))]


@contrasts.register("distorted")
@dataclass(frozen=True, kw_only=True)
class Distorted(Contrast):
    """The loser is the winner's picture, damaged."""

    kind: Literal["blur", "noise", "coarse", "fade"] = "blur"
    """blur; white noise; coarse pixels; colours faded to grey."""
    strength: float = 0.5
    """How much, in (0, 1]."""

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0 < self.strength <= 1:
            raise DataError(f"strength is {self.strength}; it must be in (0, 1]")

    def prompts(self, prompt: str, others: Sequence[str], rng: np.random.Generator) -> tuple[str, str]:
        """See Contrast."""
        return prompt, prompt

    def spoil(self, picture: Tensor, rng: np.random.Generator) -> Tensor:
        """See Contrast."""
        return DISTORTIONS[self.kind](picture, self.strength, rng).clamp(0, 1)


def _blur(x: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    radius = max(1, round(strength * x.shape[-1] / 16))
    padded = functional.pad(x[None], (radius,) * 4, mode="reflect")
    return functional.avg_pool2d(padded, 2 * radius + 1, 1)[0]


def _noise(x: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    return x + 0.4 * strength * torch.from_numpy(rng.standard_normal(tuple(x.shape))).to(x.dtype)


def _coarse(x: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    small = max(2, round(x.shape[-1] / (1 + 7 * strength)))
    shrunk = functional.interpolate(x[None], size=(small, small), mode="area")
    return functional.interpolate(shrunk, size=tuple(x.shape[-2:]), mode="nearest")[0]


def _fade(x: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    return x + strength * (x.mean(0, keepdim=True) - x)


DISTORTIONS: dict[str, Callable[[Tensor, float, np.random.Generator], Tensor]] = {
    "blur": _blur,
    "noise": _noise,
    "coarse": _coarse,
    "fade": _fade,
}
"""Ways to damage a (3, H, W) picture in [0, 1] by a strength in (0, 1]."""


def contrast_pairs(
    policy: Generator,
    prompts: Sequence[str],
    contrast: Contrast,
    *,
    seeds: Sequence[int] = (1000,),
    sampling: Sampling | None = None,
) -> list[Record]:
    """Make pairs: winner and loser of one start noise, stored under the plain prompt.

    Args:
        policy: makes the pictures.
        prompts: plain prompts.
        contrast: what differs.
        seeds: pictures of each prompt; never those of an evaluation (0 and up).
        sampling: how pictures are made, several at once.

    Raises:
        DataError: no prompts, or a contrast whose two pictures would be the same.
    """
    sampling, jobs = sampling or Sampling(), [(p, s) for p in prompts for s in seeds]
    if not jobs:
        raise DataError("contrast pairs need a prompt and a seed at least")
    rngs = [np.random.default_rng(draw_seed("contrast", p, s)) for p, s in jobs]
    sides = [contrast.prompts(p, prompts, rng) for (p, _), rng in zip(jobs, rngs, strict=True)]
    starts = [picture_seed(p, s) for p, s in jobs]
    # Both sides go into one list, where a loser that is the winner's own picture is not made twice.
    wanted = list(
        dict.fromkeys((text, start) for pair, start in zip(sides, starts, strict=True) for text in pair)
    )
    pictures = dict(zip(wanted, _generate(policy, wanted, sampling), strict=True))
    rows = zip(jobs, sides, starts, rngs, strict=True)
    return [
        _pair(
            prompt,
            seed,
            pictures[w, start],
            contrast.spoil(pictures[lost, start], rng),
            type(contrast).__name__,
        )
        for (prompt, seed), (w, lost), start, rng in rows
    ]


def _generate(policy: Generator, jobs: Sequence[tuple[str, int]], sampling: Sampling) -> list[Tensor]:
    pictures: list[Tensor] = []
    for i in range(0, len(jobs), sampling.batch):
        some = jobs[i : i + sampling.batch]
        made = policy.generate(
            [p for p, _ in some], [s for _, s in some],
            steps=sampling.steps, guidance=sampling.guidance, side=sampling.side,
        )  # fmt: skip
        pictures += list(made.float().clamp(0, 1).cpu())
    return pictures


def _pair(prompt: str, seed: int, winner: Tensor, loser: Tensor, name: str) -> Record:
    where = f"{name} pair of {prompt!r}, seed {seed}"
    images = (_image(winner, where), _image(loser, where))
    if images[0] == images[1]:
        raise DataError(f"{where}: both pictures are the same; the contrast changes nothing")
    return Record(prompt=prompt, images=images, kind="pair", values=(1.0, 0.0), source=where)


def _image(picture: Tensor, where: str) -> BytesImage:
    pixels = (picture * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return BytesImage.from_array(pixels, where)
