"""What all readers share: the Reader base, the registry, and checks that name the row."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from glob import glob, has_magic
from pathlib import Path
from typing import Any, ClassVar, TypeGuard

from diffalign.data.records import DataError, FileImage, parquet
from scorers.registry import Registry

Row = Mapping[str, Any]
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


class Reader(ABC):
    """One data format. A new format is one module in this folder with one registered subclass."""

    summary: ClassVar[str]
    """What the format looks like, in half a line."""

    @abstractmethod
    def matches(self, path: Path) -> bool:
        """Whether ``path`` looks like this format; cheap, and reads no images."""

    @abstractmethod
    def records(self, path: Path) -> Iterator[Any]:
        """Yield Record after Record in file order; images are only pointed at.

        Raises:
            DataError: a row that does not follow the format.
        """


readers: Registry[type[Reader]] = Registry("data format", package="diffalign.data.readers")
"""All readers by name of their format; found by scanning this folder."""


def parquet_files(path: Path) -> list[Path]:
    """Parquet files of a file, a glob pattern or a folder, sorted by path.

    Raises:
        DataError: a folder that mixes splits (``train-...`` beside ``test-...``), not to be mixed.
    """
    if path.is_file():
        return [path]
    if has_magic(str(path)) and not path.exists():
        return sorted(Path(p) for p in glob(str(path)) if p.endswith(".parquet"))
    files = sorted(path.rglob("*.parquet"))
    splits = sorted({f.name.split("-")[0] for f in files if "-of-" in f.name})
    if len(splits) > 1:
        raise DataError(
            f"{path} holds several splits ({', '.join(splits)}); name one of them, "
            f"e.g. {path / (splits[-1] + '-*.parquet')}"
        )
    return files


def parquet_columns(path: Path) -> set[str]:
    """Column names of the first parquet file at ``path``; empty where there is none."""
    if path.is_file() and path.suffix != ".parquet":
        return set()
    files = parquet_files(path)
    return set(open_parquet(files[0]).schema_arrow.names) if files else set()


def open_parquet(file: Path) -> Any:
    """Open a file as ``pyarrow.parquet.ParquetFile``.

    Raises:
        DataError: it is empty, cut off, or no parquet at all.
    """
    try:
        return parquet().ParquetFile(file)
    except (
        ValueError,
        OSError,
    ) as error:  # pyarrow's ArrowInvalid is a ValueError that does not name the file
        raise DataError(f"{file} is no whole parquet file ({error}); fetch it again") from error


@contextmanager
def utf8(file: Path) -> Iterator[None]:
    """Name the file where bytes that are read inside are not UTF-8.

    Raises:
        DataError: they are not.
    """
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 ({error.reason}); save it as UTF-8") from error


def json_lines(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield (where, object) for every line that is not blank."""
    with utf8(path), open(path, encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path} line {number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{where}: not valid JSON ({error.msg} at column {error.colno})") from None
            if not isinstance(row, dict):
                raise DataError(
                    f"{where}: a JSON object with named fields is needed, got {type(row).__name__}"
                )
            yield where, row


def require(columns: Iterable[str], needed: Iterable[str], where: str) -> None:
    """Raise DataError where needed columns are missing."""
    have = set(columns)
    missing = [name for name in needed if name not in have]
    if missing:
        raise DataError(
            f"{where}: missing column {', '.join(map(repr, missing))}; "
            f"there are {', '.join(sorted(have)) or 'none'}"
        )


def caption(row: Row, name: str, where: str) -> str:
    """Return the caption of a row; it may be empty, not missing."""
    value = row.get(name)
    if not isinstance(value, str):
        raise DataError(f"{where}: {name} is {value!r}; every row needs a caption (an empty text is allowed)")
    return value


def texts(row: Row, name: str, where: str) -> tuple[str, ...] | None:
    """Return a list of texts; None where it is missing or null.

    Raises:
        DataError: anything else.
    """
    value = row.get(name)
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise DataError(f"{where}: {name} is {value!r}; it must be a list with a text per image")
    return tuple(value)


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether it is a number; true and false are none, though Python counts them as integers."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def hard_label(value: object, name: str, where: str) -> float:
    """Return a label as 0.0, 0.5 or 1.0; booleans count.

    Raises:
        DataError: anything else.
    """
    if not isinstance(value, int | float) or value not in (0, 0.5, 1):
        raise DataError(
            f"{where}: {name} is {value!r}; it must be 0, 0.5 (tie) or 1; "
            "shares of votes belong into the votes format"
        )
    return float(value)


def hard_pair(first: object, second: object, names: tuple[str, str], where: str) -> tuple[float, float]:
    """Two hard labels that add up to 1; a missing second one follows from the first."""
    p0 = hard_label(first, names[0], where)
    p1 = 1 - p0 if second is None else hard_label(second, names[1], where)
    if p0 + p1 != 1:
        raise DataError(
            f"{where}: {names[0]} is {first!r} and {names[1]} is {second!r}; they must add up to 1"
        )
    return p0, p1


def image_file(folder: Path, value: object, name: str, where: str) -> FileImage:
    """Image at a path relative to ``folder`` (or absolute)."""
    if not isinstance(value, str) or not value:
        raise DataError(
            f"{where}: {name} is {value!r}; it must be the path of an image, relative to {folder}"
        )
    return FileImage(folder / value)


def text(value: object) -> str | None:
    """Any id as text; None stays None."""
    return None if value is None else str(value)
