"""The one internal form of a preference: a prompt, its images, and what somebody thought of them."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

Kind = Literal["pair", "labels", "ranking"]


class DataError(ValueError):
    """Preference data that cannot be used; the message says what, where and the remedy."""


class ImageSource(Protocol):
    """Where the bytes of an encoded image (PNG, JPEG, WebP, ...) come from."""

    @property
    def where(self) -> str:
        """What to call the image in messages, e.g. ``pairs.parquet row 17 column jpg_1``."""

    def read(self) -> bytes:
        """Encoded bytes; OSError where they cannot be read."""


@dataclass(frozen=True, slots=True)
class FileImage:
    """An image in a file of its own."""

    path: Path

    @property
    def where(self) -> str:
        """The path."""
        return str(self.path)

    def read(self) -> bytes:
        """Encoded bytes of the file."""
        return Path(self.path).read_bytes()


@dataclass(frozen=True, slots=True)
class BytesImage:
    """An image in memory, already encoded."""

    data: bytes
    where: str = "image in memory"

    def read(self) -> bytes:
        """The bytes."""
        return self.data

    @classmethod
    def from_pil(cls, image: Image.Image, where: str = "image in memory") -> BytesImage:
        """Encode a Pillow image as PNG (lossless)."""
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        return cls(buffer.getvalue(), where)

    @classmethod
    def from_array(cls, pixels: NDArray[np.uint8], where: str = "image in memory") -> BytesImage:
        """Encode a uint8 array (H, W, 3) in 0..255 as PNG.

        Raises:
            DataError: another shape or dtype.
        """
        from PIL import Image

        if str(pixels.dtype) != "uint8" or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise DataError(
                f"{where}: an image array must be uint8 (H, W, 3), got {pixels.dtype} {pixels.shape}"
            )
        return cls.from_pil(Image.fromarray(pixels), where)


@dataclass(frozen=True, slots=True)
class ParquetImage:
    """An image in a parquet column, either bytes or a struct with a ``bytes`` field; read when asked for."""

    file: Path
    row_group: int
    row: int
    """Row within the row group."""
    column: str
    offset: int = 0
    """Rows of the file before this row group; only for ``where``."""

    @property
    def where(self) -> str:
        """File, row within the file and column."""
        return f"{self.file} row {self.offset + self.row} column {self.column}"

    def read(self) -> bytes:
        """Encoded bytes; OSError where the cell is empty."""
        modified = Path(self.file).stat().st_mtime_ns
        value = _parquet_column(str(self.file), modified, self.row_group, self.column)[self.row].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise OSError("the cell holds no image bytes")
        return data


@lru_cache(maxsize=4)
def _parquet_column(file: str, modified: int, row_group: int, column: str) -> Sequence[Any]:
    """One column of one row group; neighbouring images share the read, a changed file does not."""
    table = parquet().ParquetFile(file).read_row_group(row_group, columns=[column])
    cells: Sequence[Any] = table.column(column)
    return cells


def parquet() -> ModuleType:
    """Import ``pyarrow.parquet``, or say which extra brings it."""
    try:
        return import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("parquet files need pyarrow: pip install 'diffalign[data]'") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One comparison: what every reader gives and every objective is fed from.

    Raises:
        DataError: on construction, where the fields do not fit together.
    """

    prompt: str
    """Caption of all images; may be empty, not missing."""
    images: tuple[ImageSource, ...]
    kind: Kind
    values: tuple[float, ...]
    """pair: (p0, p1), probabilities that each image wins, p0 + p1 = 1, .5/.5 a tie. labels: per image
    1 liked, 0 disliked, .5 unknown. ranking: a score per image, higher is better."""
    prompts: tuple[str, ...] | None = None
    """Own caption of each image, where they differ."""
    rater: str | None = None
    """Who judged."""
    models: tuple[str, ...] = ()
    """What made each image, where known."""
    source: str = ""
    """File and row."""

    def __post_init__(self) -> None:
        """Check the fields."""
        where = self.source or "record"
        if not isinstance(self.prompt, str):
            raise DataError(f"{where}: the caption is missing; give a text (an empty one is allowed)")
        least = {"pair": 2, "labels": 1, "ranking": 2}.get(self.kind)
        if least is None:
            raise DataError(f"{where}: kind is {self.kind!r}; it must be pair, labels or ranking")
        count = len(self.images)
        if count < least or (self.kind == "pair" and count != 2):
            raise DataError(
                f"{where}: a {self.kind} needs {least} images{'' if least == 2 else ' or more'}, got {count}"
            )
        for name, length in (("values", len(self.values)), ("prompts", len(self.prompts or self.images))):
            if length != count:
                raise DataError(
                    f"{where}: {count} images but {length} {name}; there must be one for each image"
                )
        self._check_values(where)

    def _check_values(self, where: str) -> None:
        if not all(math.isfinite(v) for v in self.values):
            raise DataError(f"{where}: values {self.values} are not all finite numbers")
        if self.kind == "pair" and (min(self.values) < 0 or abs(sum(self.values) - 1) > 1e-6):
            raise DataError(
                f"{where}: the values of a pair are {self.values}; they must be in [0, 1] and add up to 1"
            )
        if self.kind == "labels" and not set(self.values) <= {0.0, 0.5, 1.0}:
            raise DataError(
                f"{where}: labels are {self.values}; each must be 1 (liked), 0 (disliked) or 0.5 (unknown)"
            )

    @property
    def undecided(self) -> bool:
        """Whether it prefers nothing: a tied pair, unknown labels only, a ranking of equals."""
        return self.values[0] == 0.5 if self.kind == "pair" else self._flat()

    def _flat(self) -> bool:
        return set(self.values) == {0.5} if self.kind == "labels" else len(set(self.values)) == 1

    def prompt_of(self, image: int) -> str:
        """Caption of one image."""
        return self.prompt if self.prompts is None else self.prompts[image]
