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
    if not given:
        return record
    p = _number(given.get("soft"), "soft", where)
    return replace(
        record,
        margin=_number(given.get("margin"), "margin", where),
        weight=_sure(given.get("weight", 1.0), "weight", where),
        soft=None if p is None else (p, 1 - p),
        score=None if "score" not in given else _numbers(given["score"], "score", where),
        judged=_judged(given.get("judged"), where),
        distance=_number(given.get("distance"), "distance", where),
        regions=_regions(given.get("regions"), folder, where),
    )


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


def _number(value: object, name: str, where: str) -> float | None:
    return None if value is None else _sure(value, name, where)


def _sure(value: object, name: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{where}: {name} is {value!r}; it must be a number")
    return float(value)


def _numbers(value: object, name: str, where: str) -> tuple[float, ...]:
    if not isinstance(value, list):
        raise DataError(f"{where}: {name} is {value!r}; it must be a list with a number per image")
    return tuple(_sure(v, f"{name}[{i}]", where) for i, v in enumerate(value))


def _judged(value: object, where: str) -> dict[str, tuple[float, ...]]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise DataError(f"{where}: judged is {value!r}; it must be an object, scorer to a number per image")
    return {str(name): _numbers(row, f"judged.{name}", where) for name, row in value.items()}


def _regions(value: object, folder: Path | None, where: str) -> tuple[Region | None, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise DataError(f"{where}: regions is {value!r}; it must be a list with a region or null per image")
    try:
        return tuple(region_of(v, folder) for v in value)
    except RegionError as error:
        raise DataError(f"{where}: {error}") from error
