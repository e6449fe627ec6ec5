"""A planted taste that runs in a circle: kinds of pictures each of which beats the next, and votes by it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffalign.world.grammar import SHAPES, parse
from diffalign.world.oracle import hue_of, measure, object_masks
from diffalign.world.scorer_studies import CERTAIN
from diffalign.world.shapes import draw

PROMPTS = tuple(f"a {shape}" for shape in SHAPES)
"""They name no colour, so that the policy is free in what the taste is about."""
KINDS = ("purple", "warm", "cold")
"""Each beats the next, and the last the first; the base makes all three of these prompts."""
COLOURS = {"purple": ("purple", "pink"), "warm": ("red", "yellow"), "cold": ("green", "cyan", "blue")}
BORDERS = (255.0, 345.0, 90.0)
"""Hues in degrees at which the kinds begin."""


def kinds_of(pictures: Tensor) -> Tensor:
    """(B,) int64 place in KINDS by the hue of the largest object, -1 where no shape can be recognised.

    ``pictures`` are (B, 3, 64, 64) in [0, 1].
    """
    mask = object_masks(pictures)[:, :1].float()  # (B, 1, 64, 64)
    rgb = (pictures * mask).sum((2, 3)) / mask.sum((2, 3)).clamp(min=1)
    past = (hue_of(rgb) - BORDERS[0]) % 360
    starts = torch.tensor([(b - BORDERS[0]) % 360 for b in BORDERS])
    kind = torch.bucketize(past, starts, right=True) - 1
    return torch.where(measure(pictures).shape[:, 0] >= 0, kind, -1)


def planted(first: Tensor, second: Tensor) -> Tensor:
    """Chance that pictures of kinds ``first`` beat pictures of kinds ``second``, which broadcast.

    Kinds go in a circle; any kind beats a picture without a shape; equals are even.
    """
    ahead = (second - first) % len(KINDS) == 1
    chance = torch.where(ahead, CERTAIN, 1 - CERTAIN)
    chance = torch.where(first < 0, 1 - CERTAIN, torch.where(second < 0, CERTAIN, chance))
    return torch.where(first == second, 0.5, chance)


@dataclass(frozen=True, kw_only=True)
class Ballots:
    """N votes on pairs of drawn pictures."""

    pictures: Tensor
    """(2N, 3, 64, 64) in [0, 1], the first side of all pairs before the second."""
    prompts: list[str]
    """2N."""
    kinds: Tensor
    """(2N,) int64."""
    label: Tensor
    """(N,) 1 where the first is preferred, 0 where the second is, 0.5 where they are of one kind."""


def ballots_of(n: int, seed: int) -> Ballots:
    """Votes by the planted taste on pictures of all colours, for prompts that name none."""
    rng = np.random.default_rng([seed, 31])
    shapes = [SHAPES[i] for i in rng.integers(len(SHAPES), size=n)] * 2
    kinds = rng.integers(len(KINDS), size=2 * n)
    colours = [str(rng.choice(COLOURS[KINDS[k]])) for k in kinds]
    shown = [parse(f"a {colour} {shape}") for colour, shape in zip(colours, shapes, strict=True)]
    first, second = torch.from_numpy(kinds).chunk(2)
    chance = planted(first, second)
    drawn = (torch.from_numpy(rng.random(n)) < chance).to(chance.dtype)
    return Ballots(
        pictures=draw(shown, rng).clamp(0, 1), prompts=[f"a {shape}" for shape in shapes],
        kinds=torch.from_numpy(kinds), label=torch.where(first == second, 0.5, drawn),
    )  # fmt: skip
