"""Galleries of pictures in memory, as a run has them at its end."""

from __future__ import annotations

import base64
import hashlib
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffalign.evaluate.results import prompt_id
from diffalign.gallery.payload import Content, Entry

PNG_SIDE = 256
"""Pictures up to this side are embedded losslessly, larger ones as WebP."""
WEBP_QUALITY = 85

Picture = Image.Image | NDArray[np.uint8]
Scores = Mapping[str, Mapping[str, Sequence[float]]]


@dataclass(frozen=True, kw_only=True)
class GalleryItem:
    """One prompt and what every model made of it."""

    prompt: str
    category: str = ""
    images: Mapping[str, Sequence[Picture]]
    """By model (the base first), one picture per seed in the same order; arrays are (H, W, 3) uint8."""
    scores: Scores = field(default_factory=dict)
    """By judge and model, one score per seed, higher is better."""


def content_of(items: Sequence[GalleryItem]) -> Content:
    """Return the gallery of items, all with the same models, seeds and judges; seeds are counted from 0.

    Raises:
        ValueError: no items, items that differ in models, seeds or judges, or a picture of the wrong kind.
        TypeError: a picture that is neither a PIL image nor a uint8 array.
    """
    models, seeds = _check_items(items)
    seen: Counter[str] = Counter()
    entries = []
    for item in items:
        seen[name := prompt_id(item.prompt)] += 1
        entries.append(_entry(item, models, name if seen[name] == 1 else f"{name}-{seen[name]}"))
    return Content(models=models, seeds=range(seeds), entries=entries)


def encode(picture: Picture) -> tuple[str, bytes]:
    """Return kind (png or webp) and file content of a picture: lossless up to ``PNG_SIDE``.

    Raises:
        TypeError: neither a PIL image nor a uint8 array.
        ValueError: an array that is not (H, W, 3).
    """
    image = (picture if isinstance(picture, Image.Image) else _from_array(picture)).convert("RGB")
    buffer, small = io.BytesIO(), max(image.size) <= PNG_SIDE
    if small:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "WEBP", quality=WEBP_QUALITY)
    return "png" if small else "webp", buffer.getvalue()


def data_uri(kind: str, content: bytes) -> str:
    """Return a picture's file as a data URI; ``kind`` is png, webp or jpeg."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _from_array(array: object) -> Image.Image:
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8:
        found = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise TypeError(f"a picture is {found}: give a PIL image or a uint8 array of height, width, 3")
    if array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"a picture has shape {array.shape}: expected (height, width, 3)")
    return Image.fromarray(array)


def _entry(item: GalleryItem, models: Sequence[str], name: str) -> Entry:
    files = [[encode(picture) for picture in item.images[model]] for model in models]
    first = item.images[models[0]][0]
    width, height = first.size if isinstance(first, Image.Image) else (first.shape[1], first.shape[0])
    return Entry(
        prompt_id=name,
        prompt=item.prompt,
        category=item.category,
        width=width,
        height=height,
        sources=[[data_uri(kind, content) for kind, content in row] for row in files],
        sha256=[[hashlib.sha256(content).hexdigest() for _, content in row] for row in files],
        scores={judge: [by_model[model] for model in models] for judge, by_model in item.scores.items()},
    )


def _check_items(items: Sequence[GalleryItem]) -> tuple[list[str], int]:
    """Return models and number of seeds, the same for every item."""
    if not items:
        raise ValueError("a gallery needs at least one item")
    models, judges = list(items[0].images), list(items[0].scores)
    if not models or not items[0].images[models[0]]:
        raise ValueError(f"item 0 ({items[0].prompt!r}) has no pictures")
    seeds = len(items[0].images[models[0]])
    for i, item in enumerate(items):
        where = f"item {i} ({item.prompt!r})"
        if list(item.images) != models or list(item.scores) != judges:
            found = f"models {list(item.images)} and judges {list(item.scores)}"
            raise ValueError(f"{where} has {found}, item 0 has {models} and {judges}")
        for model, pictures in item.images.items():
            if len(pictures) != seeds:
                raise ValueError(
                    f"{where}: {model} has {len(pictures)} pictures, expected {seeds}, one for each seed"
                )
        for judge, by_model in item.scores.items():
            _check_scores(by_model, models, seeds, f"{where}, {judge}")
    return models, seeds


def _check_scores(
    by_model: Mapping[str, Sequence[float]], models: Sequence[str], seeds: int, where: str
) -> None:
    if set(by_model) != set(models):
        raise ValueError(f"{where}: scores for {list(by_model)}, expected {list(models)}")
    for model, scores in by_model.items():
        if len(scores) != seeds or not all(math.isfinite(score) for score in scores):
            raise ValueError(f"{where}: {model} has scores {list(scores)}, expected {seeds} finite numbers")
