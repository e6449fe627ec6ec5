"""Where in an image an opinion counts: a rectangle, a mask or a grid of weights."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from diffalign.data.sources import FileImage, ImageSource

if TYPE_CHECKING:
    from numpy.typing import NDArray

Where = Literal["rectangle", "mask", "weights"]
KEYS: tuple[Where, ...] = ("rectangle", "mask", "weights")
SHAPE_TOLERANCE = 0.02
"""How far the aspect ratio of a mask may be from its image's."""


class RegionError(ValueError):
    """A region that cannot be used; says what is wrong, the caller says where."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Region:
    """Weights of the places of one image; exactly one of ``rectangle``, ``mask`` and ``weights`` is given.

    Raises:
        RegionError: none or several are given, or numbers outside their range.
    """

    rectangle: tuple[float, float, float, float] | None = None
    """Left, top, right, bottom as shares of the upright image's width and height."""
    mask: ImageSource | None = None
    """Grey image of the image's shape: white counts 1, black counts ``outside``."""
    weights: tuple[tuple[float, ...], ...] | None = None
    """Rows of weights, 0 or more, from the top; any number of rows and columns, laid over the image."""
    outside: float = 0.0
    """Weight outside the rectangle and where the mask is black, 0 or more."""

    def __post_init__(self) -> None:
        """Check the fields."""
        given = [name for name in KEYS if getattr(self, name) is not None]
        if len(given) != 1:
            raise RegionError(f"a region is one of {', '.join(KEYS)}, got {' and '.join(given) or 'none'}")
        if not 0 <= self.outside < float("inf"):
            raise RegionError(f"outside is {self.outside}; it must be 0 or more")
        if self.rectangle is not None:
            left, top, right, bottom = self.rectangle
            if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
                raise RegionError(
                    f"rectangle is {list(self.rectangle)}; it must be left, top, right, bottom in [0, 1], "
                    "left < right and top < bottom"
                )
        if self.weights is not None:
            self._check_weights(self.weights)

    def _check_weights(self, rows: tuple[tuple[float, ...], ...]) -> None:
        if not rows or not rows[0] or len({len(row) for row in rows}) > 1:
            raise RegionError("weights must be rows of equal length, at least one number each")
        flat = np.asarray(rows)
        if not (np.isfinite(flat).all() and flat.min() >= 0 and flat.max() > 0):
            raise RegionError("weights must be finite, 0 or more, and not all 0")

    def pixels(self, height: int, width: int) -> NDArray[np.float32]:
        """(height, width) weights of the pixels of the upright image.

        Raises:
            RegionError: a mask that is no image, or of another shape than its image.
            OSError: the mask cannot be read.
        """
        if self.rectangle is not None:
            left, top, right, bottom = self.rectangle
            y = _cover(top * height, bottom * height, height)
            x = _cover(left * width, right * width, width)
            return self._faded(y[:, None] * x[None, :])
        if self.mask is not None:
            return self._faded(_mask(self.mask, height, width))
        return _stretch(np.asarray(self.weights, dtype=np.float32), height, width)

    def _faded(self, inside: NDArray[np.float32]) -> NDArray[np.float32]:
        weights: NDArray[np.float32] = self.outside + (1 - self.outside) * inside
        return weights

    def key(self) -> str:
        """All that decides the weights, as text for the cache; a mask goes by its bytes."""
        mask = hashlib.sha256(self.mask.read()).hexdigest() if self.mask is not None else ""
        return f"v1 {self.rectangle} {mask} {self.weights} {self.outside!r}"


def _cover(start: float, end: float, count: int) -> NDArray[np.float32]:
    """(count,) share of each pixel of a line that lies between start and end."""
    edges = np.arange(count + 1)
    covered = np.minimum(edges[1:], end) - np.maximum(edges[:-1], start)
    share: NDArray[np.float32] = np.clip(covered, 0, 1).astype(np.float32)
    return share


def _mask(source: ImageSource, height: int, width: int) -> NDArray[np.float32]:
    from PIL import Image, ImageOps

    data = source.read()
    try:
        with Image.open(io.BytesIO(data)) as image:
            grey = ImageOps.exif_transpose(image).convert("L")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise RegionError(f"{source.where} is no whole image ({type(error).__name__})") from error
    if abs(grey.width * height / (grey.height * width) - 1) > SHAPE_TOLERANCE:
        raise RegionError(
            f"{source.where} is {grey.width} x {grey.height}, its image {width} x {height}; "
            "a mask must have the shape of its image"
        )
    if grey.size != (width, height):
        grey = grey.resize((width, height), Image.Resampling.BOX)
    return np.divide(np.asarray(grey, dtype=np.float32), 255, dtype=np.float32)


def _stretch(grid: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Nearest-neighbour enlargement of a grid of weights to the pixels."""
    rows = np.arange(height) * grid.shape[0] // height
    columns = np.arange(width) * grid.shape[1] // width
    return np.ascontiguousarray(grid[rows][:, columns])


def region_of(value: object, folder: Path | None) -> Region | None:
    """Region from JSON: ``{"rectangle": [l, t, r, b]}``, ``{"mask": path}`` or ``{"weights": [[...]]}``.

    Each may have ``outside``; null is no region. Paths of masks are relative to ``folder``; None allows no
    mask.

    Raises:
        RegionError: anything else.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping) or not set(value) <= {*KEYS, "outside"}:
        raise RegionError(
            f"a region is {value!r}; it must be an object with {' or '.join(KEYS)}, and outside"
        )
    path = value.get("mask")
    if path is not None and (folder is None or not isinstance(path, str)):
        raise RegionError(
            f"mask is {path!r}; give the path of an image, or where there are no paths, weights"
        )
    try:
        return Region(
            rectangle=_numbers(value.get("rectangle"), 4),
            mask=None if path is None or folder is None else FileImage(folder / path),
            weights=None if value.get("weights") is None else _rows(value["weights"]),
            outside=float(value.get("outside", 0.0)),
        )
    except (TypeError, ValueError) as error:
        raise RegionError(str(error)) from error


def region_json(region: Region | None) -> dict[str, Any] | None:
    """JSON of a region, the inverse of ``region_of``.

    Raises:
        RegionError: a mask that is in no file of its own.
    """
    if region is None:
        return None
    found: dict[str, Any] = {"outside": region.outside} if region.outside else {}
    if region.rectangle is not None:
        return {"rectangle": list(region.rectangle), **found}
    if region.weights is not None:
        return {"weights": [list(row) for row in region.weights], **found}
    if not isinstance(region.mask, FileImage):
        raise RegionError("a mask in memory cannot be written; write it to a file, or use weights")
    return {"mask": str(Path(region.mask.path).absolute()), **found}


def _numbers(value: object, count: int) -> tuple[float, float, float, float] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != count:
        raise RegionError(f"rectangle is {value!r}; it must be a list of {count} numbers")
    a, b, c, d = (float(v) for v in value)
    return a, b, c, d


def _rows(value: object) -> tuple[tuple[float, ...], ...]:
    if not isinstance(value, list) or not all(isinstance(row, list) for row in value):
        raise RegionError("weights must be a list of rows of numbers")
    return tuple(tuple(float(v) for v in row) for row in value)
