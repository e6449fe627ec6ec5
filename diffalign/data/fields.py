"""Optional fields of a record in JSON rows: margin, weight, soft, score, judged, distance, regions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffalign.data.records import DataError, Record
from diffalign.data.region import Region, RegionError, region_json, region_of

NAMES = ("margin", "weight", "soft", "score", "judged", "distance", "regions")
"""Names of the optional fields, in a row as in a Record."""


def with_fields(record: Record, row: Mapping[str, Any], folder: Path | None) -> Record:
    """The record with the optional fields that a row has; ``soft`` is the first image's probability to win.

    Args:
        record: what the row says besides.
        row: JSON object; null is as good as nothing.
        folder: what paths of masks are relative to; None allows no mask.

    Raises:
        DataError: a field of the wrong form or outside its range; names the row.
    """
    where = record.source or "record"
    given = {name: row[name] for name in NAMES if row.get(name) is not None}
    return replace(record, **{name: _read(name, value, folder, where) for name, value in given.items()})


def fields_of(record: Record) -> dict[str, Any]:
    """Optional fields of a record that are set, as JSON; the inverse of ``with_fields``.

    Raises:
        DataError: a region that cannot be written.
    """
    try:
        regions = None if record.regions is None else [region_json(r) for r in record.regions]
    except RegionError as error:
        raise DataError(f"{record.source or 'record'}: {error}") from error
    found = {
        "margin": record.margin,
        "weight": None if record.weight == 1 else record.weight,
        "soft": None if record.soft is None else record.soft[0],
        "score": None if record.score is None else list(record.score),
        "judged": {name: list(row) for name, row in record.judged.items()} or None,
        "distance": record.distance,
        "regions": regions,
    }
    return {name: value for name, value in found.items() if value is not None}


def _read(name: str, value: object, folder: Path | None, where: str) -> Any:
    """Value of one field of a Record from its JSON."""
    if name == "soft":
        p = _number(value, name, where)
        return p, 1 - p
    if name == "regions":
        return _regions(value, folder, where)
    if name == "judged":
        return _judged(value, where)
    return _numbers(value, name, where) if name == "score" else _number(value, name, where)


def _number(value: object, name: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{where}: {name} is {value!r}; it must be a number")
    return float(value)


def _numbers(value: object, name: str, where: str) -> tuple[float, ...]:
    if not isinstance(value, list):
        raise DataError(f"{where}: {name} is {value!r}; it must be a list with a number per image")
    return tuple(_number(v, f"{name}[{i}]", where) for i, v in enumerate(value))


def _judged(value: object, where: str) -> dict[str, tuple[float, ...]]:
    if not isinstance(value, Mapping):
        raise DataError(f"{where}: judged is {value!r}; it must be an object, scorer to a number per image")
    return {str(name): _numbers(row, f"judged.{name}", where) for name, row in value.items()}


def _regions(value: object, folder: Path | None, where: str) -> tuple[Region | None, ...]:
    if not isinstance(value, list):
        raise DataError(f"{where}: regions is {value!r}; it must be a list with a region or null per image")
    try:
        return tuple(region_of(v, folder) for v in value)
    except RegionError as error:
        raise DataError(f"{where}: {error}") from error
