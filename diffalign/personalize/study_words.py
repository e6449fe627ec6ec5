"""Tastes said in a prompt: the baseline that needs no alignment."""

from __future__ import annotations

from dataclasses import replace

from diffalign.world.grammar import SIZES, parse

BACKGROUNDS = {"warm": ("red", "yellow"), "cool": ("blue", "cyan")}
"""Backgrounds that have a taste, the most so first; the second is for objects of the first's colour."""
WORDS = ("large", "small", *BACKGROUNDS)
"""Tastes that the grammar can say. It cannot say a shade: that is the object's own."""


def said(prompt: str, taste: str) -> str:
    """A prompt that says a taste too: ``a large red circle``, ``a red circle on a yellow background``.

    Raises:
        ValueError: a taste that the grammar cannot say, or no prompt of the shapes world.
    """
    if taste not in WORDS:
        raise ValueError(f"no prompt says {taste!r}; what can be said is {', '.join(WORDS)}")
    meaning = parse(prompt)
    if taste in SIZES:
        return str(replace(meaning, size=taste))
    background = next(b for b in BACKGROUNDS[taste] if b not in meaning.colours)
    return str(replace(meaning, background=background))
