"""Where encoded images come from: files, memory, parquet columns, tar shards; read only when asked for."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image


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


@dataclass(frozen=True, slots=True)
class TarImage:
    """An image in an uncompressed tar file, by its place there; read when asked for."""

    file: Path
    offset: int
    size: int
    where: str = "image in a tar file"

    def read(self) -> bytes:
        """Encoded bytes; OSError where the file ends before them."""
        with open(self.file, "rb") as tar:
            tar.seek(self.offset)
            data = tar.read(self.size)
        if len(data) < self.size:
            raise OSError(f"{self.file} ends before the image does")
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
