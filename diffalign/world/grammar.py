"""Prompts of the shapes world: what may be said, how it is parsed, and which prompts are held out."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
HUES = {"red": 0, "yellow": 55, "green": 120, "cyan": 182, "blue": 228, "purple": 278, "pink": 325}
COLOURS = tuple(HUES)
"""Colours of objects; their hues in degrees are at least 35 degrees apart."""
BACKGROUNDS = (*COLOURS, "white", "gray", "black")
SIZES = {"small": (0.18, 0.22), "medium": (0.24, 0.29), "large": (0.32, 0.38)}
"""Radius ranges, as a share of the side of the picture."""
RELATIONS = ("left of", "right of", "above", "below")
WORDS = tuple(
    dict.fromkeys(
        ["a", *SIZES, *BACKGROUNDS, *SHAPES, "left", "right", "of", "above", "below", "on", "background"]
    )
)
"""Every word that a prompt can hold: the vocabulary of the tiny tokenizers."""

Split = Literal["train", "heldout"]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt, as meaning. ``None`` is what the prompt leaves open."""

    shapes: tuple[str, ...]
    colours: tuple[str, ...]
    size: str | None = None
    background: str | None = None
    relation: str | None = None

    def __str__(self) -> str:
        """Return the prompt as a sentence."""
        nouns = [f"{colour} {shape}" for colour, shape in zip(self.colours, self.shapes, strict=True)]
        text = f"a {self.size} {nouns[0]}" if self.size else f"a {nouns[0]}"
        text += f" {self.relation} a {nouns[1]}" if self.relation else ""
        return text + (f" on a {self.background} background" if self.background else "")


def parse(text: str) -> Prompt:
    """Read a sentence of the shapes world.

    Raises:
        ValueError: the sentence is not one that the grammar can say.
    """
    head, _, tail = text.strip().removeprefix("a ").partition(" on a ")
    relation = next((r for r in RELATIONS if f" {r} a " in head), None)
    parts = [p.split() or [""] for p in (head.split(f" {relation} a ") if relation else [head])]
    size = parts[0].pop(0) if len(parts[0]) > 1 and parts[0][0] in SIZES else None
    prompt = Prompt(
        shapes=tuple(p[-1] for p in parts),
        colours=tuple(p[0] for p in parts),
        size=size,
        background=tail.removesuffix(" background") or None,
        relation=relation,
    )
    known = all(s in SHAPES for s in prompt.shapes) and all(c in COLOURS for c in prompt.colours)
    if not known or str(prompt) != text.strip() or prompt.background not in (None, *BACKGROUNDS):
        raise ValueError(
            f"{text!r} is no prompt of the shapes world; an example is 'a large red circle on a white "
            f"background'"
        )
    return prompt


def is_heldout(prompt: Prompt) -> bool:
    """Say whether a prompt belongs to the held-out third (by a hash of its text, so for ever)."""
    return hashlib.sha256(str(prompt).encode()).digest()[0] % 3 == 0


@cache
def single_prompts(split: Split) -> tuple[Prompt, ...]:
    """Every one-object prompt of a split, in a fixed shuffled order."""
    backgrounds: tuple[str | None, ...] = (None, *BACKGROUNDS)
    found = [
        Prompt(shapes=(shape,), colours=(colour,), size=size, background=background)
        for shape, colour, size, background in itertools.product(SHAPES, COLOURS, (None, *SIZES), backgrounds)
        if background != colour
    ]
    kept = [p for p in found if is_heldout(p) == (split == "heldout")]
    return tuple(kept[i] for i in np.random.default_rng(0).permutation(len(kept)))


@cache
def double_prompts(split: Split) -> tuple[Prompt, ...]:
    """Every two-object prompt of a split (different colours), in a fixed shuffled order."""
    found = [
        Prompt(shapes=shapes, colours=colours, relation=relation, background=background)
        for shapes in itertools.product(SHAPES, repeat=2)
        for colours in itertools.permutations(COLOURS, 2)
        for relation, background in itertools.product(RELATIONS, (None, *BACKGROUNDS))
        if background not in colours
    ]
    kept = [p for p in found if is_heldout(p) == (split == "heldout")]
    return tuple(kept[i] for i in np.random.default_rng(1).permutation(len(kept)))


def sample_prompts(
    n: int,
    rng: np.random.Generator,
    split: Split = "train",
    double_share: float = 0.25,
    open_share: float = 0.5,
) -> list[Prompt]:
    """Draw prompts (with replacement) of which about ``open_share`` omit the size and ``open_share`` the
    background.
    """
    pools = {False: _by_openness(split, doubles=False), True: _by_openness(split, doubles=True)}
    prompts = []
    for double in rng.random(n) < double_share:
        pool = pools[bool(double)][
            bool(rng.random() < open_share) or bool(double), bool(rng.random() < open_share)
        ]
        prompts.append(pool[int(rng.integers(len(pool)))])
    return prompts


@cache
def _by_openness(split: Split, *, doubles: bool) -> dict[tuple[bool, bool], tuple[Prompt, ...]]:
    prompts = double_prompts(split) if doubles else single_prompts(split)
    keys = [(p.size is None, p.background is None) for p in prompts]
    return {k: tuple(p for p, key in zip(prompts, keys, strict=True) if key == k) for k in set(keys)}
