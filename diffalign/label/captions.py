"""Own captions for the two sides of a pair: the variants of DCPO (arXiv:2502.06023)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from diffalign.data.records import DataError, ImageSource, Record
from diffalign.data.split import fraction

Variant = Literal["c", "p", "h"]
Describe = Callable[[Sequence[ImageSource], Sequence[str]], list[str]]
"""A captioner: captions of images, given their prompts."""
Perturb = Callable[[str, np.random.Generator], str]
"""A prompt with something changed."""


def dual_captions(
    records: Sequence[Record],
    variant: Variant,
    *,
    describe: Describe | None = None,
    perturb: Perturb | None = None,
    batch: int = 64,
    seed: int = 0,
) -> list[Record]:
    """Pairs with a caption for each image; the plain prompt stays beside.

    c: each image as the captioner sees it. p: the prompt for the winner, the prompt perturbed for the loser.
    h: the captioner's caption for the winner, the perturbed caption for the loser.

    Args:
        records: pairs with a winner; ties keep one caption.
        variant: which of the three.
        describe: captioner, for c and h.
        perturb: changes a caption, for p and h.
        batch: images that the captioner gets at once.
        seed: of what is changed; a record's changes depend on its prompt and place alone.

    Raises:
        DataError: other records than pairs, or no captioner or perturbation where the variant uses one.
    """
    if any(r.kind != "pair" for r in records):
        raise DataError("own captions for two sides are for pairs, and the data hold other records")
    if variant in ("c", "h") and describe is None:
        raise DataError(f"variant {variant} needs a captioner: give describe")
    if variant in ("p", "h") and perturb is None:
        raise DataError(f"variant {variant} needs changed captions: give perturb")
    sides = _described(records, describe, batch) if describe is not None and variant != "p" else None
    out = []
    for i, record in enumerate(records):
        captions = list(sides[i]) if sides is not None else [record.prompt, record.prompt]
        if perturb is not None and variant != "c":
            rng = np.random.default_rng(int(fraction(f"{i} {record.prompt}", seed) * 2**53))
            captions[1 - record.winner] = perturb(captions[1 - record.winner], rng)
        out.append(record if record.undecided else replace(record, prompts=tuple(captions)))
    return out


def _described(records: Sequence[Record], describe: Describe, batch: int) -> list[tuple[str, str]]:
    images = [image for r in records for image in r.images]
    prompts = [r.prompt for r in records for _ in r.images]
    found: list[str] = []
    for i in range(0, len(images), batch):
        found += describe(images[i : i + batch], prompts[i : i + batch])
    return list(zip(found[::2], found[1::2], strict=True))


def perturb_words(prompt: str, rng: np.random.Generator, share: float = 0.4) -> str:
    """The prompt without about ``share`` of its words, the rest in another order, for texts with spaces.

    DCPO paraphrases with a language model at lexical diversity 40 to 80; this is the plain stand-in.

    Raises:
        DataError: fewer than two words, of which none can be changed.
    """
    words = prompt.split()
    if len(words) < 2:
        raise DataError(f"prompt {prompt!r} has fewer than two words; it cannot be perturbed")
    keep = sorted(rng.choice(len(words), max(1, round((1 - share) * len(words))), replace=False).tolist())
    kept = [words[i] for i in keep]
    swap = int(rng.integers(len(kept)))
    kept = kept[swap:] + kept[:swap]
    return " ".join(kept if kept != words else reversed(words))
