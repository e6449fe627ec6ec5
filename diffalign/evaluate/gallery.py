"""The gallery: one HTML file that holds every picture and shows models side by side, without any network."""

from __future__ import annotations

import base64
import io
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from diffalign.evaluate.report import Report, check_report, write_atomic
from diffalign.evaluate.stats import base_sd

logger = logging.getLogger(__name__)

PNG_SIDE = 256
"""Pictures up to this side are embedded as lossless PNG, larger ones as WebP."""
WEBP_QUALITY = 85
LARGE_FILE = 150 * 2**20
"""Bytes above which browsers become slow."""
TIE_MARGIN_SD = 0.25

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


def write_gallery(
    path: str | Path,
    items: Sequence[GalleryItem],
    report: Report | None,
    title: str,
    *,
    overwrite: bool = False,
) -> Path:
    """Write the gallery.

    Args:
        path: the HTML file.
        items: the prompts; all with the same models, seeds and judges.
        report: what ``report.build_report`` returned, for the summary on top.
        title: heading and window title.
        overwrite: replace a file that is there.

    Raises:
        FileExistsError: the file is there and ``overwrite`` is not set.
        ValueError: no items, items that differ in models, seeds or judges, or a picture of the wrong kind.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists: give another name, or overwrite=True to replace it")
    html = render_gallery(items, report, title)
    if len(html) > LARGE_FILE:
        logger.warning(
            "%s has %d MB and will open slowly: show fewer prompts or seeds", path, len(html) >> 20
        )
    return write_atomic(path, html)


def render_gallery(items: Sequence[GalleryItem], report: Report | None, title: str) -> str:
    """Return the gallery's HTML; arguments and errors as for ``write_gallery``."""
    environment = Environment(
        loader=PackageLoader("diffalign", "evaluate"), autoescape=True, undefined=StrictUndefined
    )
    # sort_keys would lose the order of the report's lines, and NaN is no JSON.
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "allow_nan": False}
    data = gallery_data(items, None if report is None else check_report(report))
    return environment.get_template("gallery.html").render(title=title, data=data)


def gallery_data(items: Sequence[GalleryItem], report: Report | None) -> dict[str, Any]:
    """Return what the page's script reads: models (base first), judges with their unit, rows, report."""
    models, judges, seeds = _check_items(items)
    if report is not None and report["base"] in models[1:]:
        raise ValueError(
            f"the report's base is {report['base']!r} but the items start with {models[0]!r}: put it first"
        )
    units = {judge: _reported_unit(report, judge) or _unit(items, judge, models[0]) for judge in judges}
    return {
        "models": models,
        "seeds": seeds,
        "judges": [
            {"name": judge, "sd": sd, "trained": _trained_on(judge, report)} for judge, sd in units.items()
        ],
        "margin": TIE_MARGIN_SD if report is None else report["tie_margin_sd"],
        "rows": [_row(item) for item in items],
        "report": report,
    }


def picture_uri(picture: Picture) -> tuple[str, int, int]:
    """Return a picture as a data URI, with its width and height in pixels.

    Raises:
        TypeError: neither a PIL image nor a uint8 array.
        ValueError: an array that is not (H, W, 3).
    """
    image = picture if isinstance(picture, Image.Image) else _from_array(picture)
    image = image.convert("RGB")
    buffer, small = io.BytesIO(), max(image.size) <= PNG_SIDE
    if small:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "WEBP", quality=WEBP_QUALITY)
    kind = "png" if small else "webp"
    return (
        f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}",
        image.width,
        image.height,
    )


def _from_array(array: object) -> Image.Image:
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8:
        found = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise TypeError(f"a picture is {found}: give a PIL image or a uint8 array of height, width, 3")
    if array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"a picture has shape {array.shape}: expected (height, width, 3)")
    return Image.fromarray(array)


def _row(item: GalleryItem) -> dict[str, Any]:
    encoded = {
        model: [picture_uri(picture) for picture in pictures] for model, pictures in item.images.items()
    }
    _, width, height = next(iter(encoded.values()))[0]
    return {
        "prompt": item.prompt,
        "category": item.category,
        "images": {model: [uri for uri, _, _ in pictures] for model, pictures in encoded.items()},
        "scores": {
            judge: {model: [float(s) for s in scores] for model, scores in by_model.items()}
            for judge, by_model in item.scores.items()
        },
        "width": width,
        "height": height,
    }


def _reported_unit(report: Report | None, judge: str) -> float | None:
    """The unit that the report counted in, from all its prompts; the items may be only some of them."""
    for row in report["comparisons"] if report else []:
        if row["metric"] == judge and row["mean_gain_sd"]:
            return row["mean_gain"] / row["mean_gain_sd"]
    return None


def _unit(items: Sequence[GalleryItem], judge: str, base: str) -> float | None:
    """Seed-to-seed s.d. of the base, as in the report; None where there is none: gains then stay raw."""
    scores = [item.scores[judge][base] for item in items]
    try:
        return base_sd(scores)
    except ValueError:
        logger.info("%s: the base has no spread between seeds, so gains are shown in raw units", judge)
        return None


def _trained_on(judge: str, report: Report | None) -> bool:
    return any(
        row["metric"] == judge and not row["held_out"] for row in (report["comparisons"] if report else [])
    )


def _check_items(items: Sequence[GalleryItem]) -> tuple[list[str], list[str], int]:
    """Return models, judges and number of seeds, the same for every item."""
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
    return models, judges, seeds


def _check_scores(
    by_model: Mapping[str, Sequence[float]], models: Sequence[str], seeds: int, where: str
) -> None:
    if set(by_model) != set(models):
        raise ValueError(f"{where}: scores for {list(by_model)}, expected {list(models)}")
    for model, scores in by_model.items():
        if len(scores) != seeds or not all(math.isfinite(score) for score in scores):
            raise ValueError(f"{where}: {model} has scores {list(scores)}, expected {seeds} finite numbers")
