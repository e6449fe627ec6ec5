"""What UnifiedReward wrote, turned into numbers, with a word for every reply that cannot be."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

Status = Literal["ok", "missing", "out_of_range", "ambiguous"]
AXES = ("alignment", "coherence", "style")
LOWEST, HIGHEST = 1.0, 5.0
NUMBER = r"(-?\d+(?:\.\d+)?)"
FINAL = re.compile(rf"Final Score:\s*{NUMBER}")
VERDICTS = {"Image 1 is better": 1.0, "Image 2 is better": 0.0, "Both images are equally good": 0.5}


class Parsed(NamedTuple):
    """Numbers of a reply, NaN where there is none, and how it went."""

    values: tuple[float, ...]
    status: Status
    at: int = -1
    """Where in the text the deciding character stands, for a look at the model's other choices."""


def parse_point(text: str) -> Parsed:
    """Mark of 1 to 5 behind the first "Final Score:" (as written, in this case)."""
    found = FINAL.search(text)
    if found is None:
        return Parsed((math.nan,), "missing")
    value = float(found[1])
    return Parsed((value,), "ok", found.start(1)) if LOWEST <= value <= HIGHEST else _bad(1)


def parse_point_axes(text: str) -> Parsed:
    """Marks of 1 to 5 for alignment, coherence and style, from lines "Alignment Score (1-5): x"."""
    found = [re.search(rf"{axis.title()} Score \(1-5\):\s*{NUMBER}", text) for axis in AXES]
    values = [float(one[1]) for one in found if one is not None]
    if len(values) < len(AXES):
        return Parsed((math.nan,) * len(AXES), "missing")
    return Parsed(tuple(values), "ok") if _within(values, LOWEST, HIGHEST) else _bad(len(AXES))


def parse_pair(text: str) -> Parsed:
    """Chance that image 1 is preferred: 1, 0, or 0.5 for a tie; two different verdicts are no verdict."""
    said = [(text.find(words), value) for words, value in VERDICTS.items() if words in text]
    if len(said) != 1:
        return Parsed((math.nan,), "ambiguous" if said else "missing")
    at, value = said[0]
    return Parsed((value,), "ok", -1 if value == 0.5 else at + len("Image "))


def parse_pair_axes(text: str) -> Parsed:
    """Image 1's share in [0, 1] per axis, from "Alignment Score:" with "Image 1: x" and "Image 2: y" below.

    The two must add up to 1, within 0.02.
    """
    rows = rf"\s*Image 1:\s*{NUMBER}\s*Image 2:\s*{NUMBER}"
    found = [re.search(rf"{axis.title()} Score:{rows}", text) for axis in AXES]
    shares = [(float(one[1]), float(one[2])) for one in found if one is not None]
    if len(shares) < len(AXES):
        return Parsed((math.nan,) * len(AXES), "missing")
    fits = _within([x for pair in shares for x in pair], 0, 1) and all(
        abs(a + b - 1) <= 0.02 for a, b in shares
    )
    return Parsed(tuple(a for a, _ in shares), "ok") if fits else _bad(len(AXES))


def _within(values: Sequence[float], low: float, high: float) -> bool:
    return all(low <= value <= high for value in values)


def _bad(n: int) -> Parsed:
    return Parsed((math.nan,) * n, "out_of_range")
