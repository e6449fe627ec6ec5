"""Readers of preference data. ``read(path)`` knows the format; a new one is one module in this folder."""

from __future__ import annotations

from glob import glob
from itertools import islice
from pathlib import Path

from diffalign.data.readers.base import Reader, readers
from diffalign.data.records import DataError, Record

__all__ = ["Reader", "detect", "read", "readers"]


def read(path: str | Path, format: str = "auto", *, max_pairs: int | None = None) -> list[Record]:
    """Read preferences; images are only pointed at, not loaded.

    Args:
        path: file, folder, or glob pattern of parquet files.
        format: name of a reader (see ``readers.names()``) or ``auto``.
        max_pairs: stop after so many records.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        RegistryError: no format has this name; the message suggests the nearest.
        DataError: the data do not follow the format, or hold no record.
    """
    path = Path(path)
    if max_pairs is not None and max_pairs < 1:
        raise DataError(f"max_pairs is {max_pairs}; it must be at least 1, or None for all")
    if not path.exists() and not glob(str(path)):
        raise FileNotFoundError(
            f"no preferences at {path}; check the path (relative paths start at the current folder)"
        )
    name = detect(path) if format == "auto" else format
    found = list(islice(readers.get(name)().records(path), max_pairs))
    if not found:
        raise DataError(f"{path} holds no labelled record in the format {name!r}: the data set is empty")
    return found


def detect(path: str | Path) -> str:
    """Name of the one format that ``path`` looks like.

    Raises:
        DataError: none, or more than one.
    """
    fits = [name for name in readers.names() if readers.get(name)().matches(Path(path))]
    if len(fits) == 1:
        return fits[0]
    known = "; ".join(f"{name} ({readers.get(name).summary})" for name in fits or readers.names())
    problem = "fits several formats" if fits else "is in no format that is recognised"
    raise DataError(f"{path} {problem}; name one with format=...: {known}")
