"""Captions of the shapes world: what a picture shows, and prompts with one detail changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from diffalign.data.records import ImageSource
from diffalign.data.transform import decode
from diffalign.world.grammar import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, SIZES, Prompt, parse
from diffalign.world.oracle import Measurements, measure


def describe(pictures: Tensor, prompts: Sequence[str]) -> list[str]:
    """Caption of each of (B, 3, 64, 64) pictures in [0, 1]: colour, shape and background of what is seen.

    A picture that shows nothing recognisable keeps its own prompt, as no caption of the world fits it.
    """
    found = measure(pictures)
    captions = [_describe_one(found, i) for i in range(len(prompts))]
    return [p if c is None else str(c) for p, c in zip(prompts, captions, strict=True)]


def describe_images(images: Sequence[ImageSource], prompts: Sequence[str]) -> list[str]:
    """``describe`` for encoded 64 x 64 images: the captioner of ``label.captions.dual_captions``."""
    pixels = [np.asarray(decode(image.read(), image.where)) for image in images]
    return describe(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255, prompts)


def _describe_one(found: Measurements, i: int) -> Prompt | None:
    shape, colour = int(found.shape[i, 0]), int(found.colour[i, 0])
    if shape < 0 or colour < 0:
        return None
    background = int(found.background[i])
    names = {"background": BACKGROUNDS[background] if background >= 0 else None}
    if names["background"] == COLOURS[colour]:
        names["background"] = None
    second = int(found.shape[i, 1]), int(found.colour[i, 1])
    if min(second) >= 0 and second[1] != colour:
        relation = _relation(found, i)
        shapes, colours = (SHAPES[shape], SHAPES[second[0]]), (COLOURS[colour], COLOURS[second[1]])
        clear = names["background"] not in colours
        return Prompt(
            shapes=shapes,
            colours=colours,
            relation=relation,
            background=names["background"] if clear else None,
        )
    size = _size(float(found.radius[i, 0]))
    return Prompt(
        shapes=(SHAPES[shape],), colours=(COLOURS[colour],), size=size, background=names["background"]
    )


def _relation(found: Measurements, i: int) -> str:
    dx, dy = (found.centre[i, 0] - found.centre[i, 1]).tolist()
    left, right, above, below = RELATIONS
    if abs(dx) >= abs(dy):
        return left if dx < 0 else right
    return above if dy < 0 else below


def _size(radius: float) -> str | None:
    return next((name for name, (low, high) in SIZES.items() if low <= radius <= high), None)


def perturb(prompt: str, rng: np.random.Generator) -> str:
    """The prompt with one of its details (shape, colour, size, background, relation) changed to another.

    Raises:
        ValueError: the prompt is none of the shapes world.
    """
    p = parse(prompt)
    options = [_reshaped(p), _recoloured(p)]
    if p.size is not None:
        options.append([replace(p, size=s) for s in SIZES if s != p.size])
    if p.background is not None:
        taken = {p.background, *p.colours}
        options.append([replace(p, background=b) for b in BACKGROUNDS if b not in taken])
    if p.relation is not None:
        options.append([replace(p, relation=r) for r in RELATIONS if r != p.relation])
    choices = options[int(rng.integers(len(options)))]
    return str(choices[int(rng.integers(len(choices)))])


def _reshaped(p: Prompt) -> list[Prompt]:
    return [replace(p, shapes=(s, *p.shapes[1:])) for s in SHAPES if s != p.shapes[0]]


def _recoloured(p: Prompt) -> list[Prompt]:
    taken = {p.background, *p.colours}
    return [replace(p, colours=(c, *p.colours[1:])) for c in COLOURS if c not in taken]
