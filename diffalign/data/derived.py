"""Labels beside a data set: a jsonl file whose lines say what becomes of which record."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from diffalign.data.fields import fields_of, with_fields
from diffalign.data.readers import read
from diffalign.data.readers.base import Row, is_number, json_lines
from diffalign.data.records import DataError, Kind, Record


@dataclass(frozen=True, kw_only=True)
class Derived:
    """A record made of one of a data set."""

    of: int
    """Position of the record it is made of."""
    images: tuple[int, ...]
    """Positions of its images there."""
    record: Record


def write_labels(derived: Iterable[Derived], path: Path) -> int:
    """Write a line for each record to a new file; returns their number.

    Raises:
        FileExistsError: there is a file; nothing is ever overwritten.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with open(path, "x", encoding="utf-8") as file:
        for item in derived:
            file.write(json.dumps(_line(item)) + "\n")
            count += 1
    return count


def read_labelled(
    path: str | Path, labels: str | Path, format: str = "auto", *, max_pairs: int | None = None
) -> list[Record]:
    """Read a data set and what a labels file makes of it.

    Args:
        path: the data set.
        labels: file that ``diffalign score --write`` wrote for it.
        format: of the data set.
        max_pairs: take the first so many records of the labels.

    Raises:
        FileNotFoundError: no such file.
        DataError: the labels are of other data, or hold a wrong value.
    """
    return with_labels(read(path, format), labels)[:max_pairs]


def with_labels(records: Sequence[Record], labels: str | Path) -> list[Record]:
    """What the lines of a labels file make of records, in the order of its lines.

    Raises:
        DataError: a line of another record: the prompt is another one, or the position is not there.
    """
    path = Path(labels)
    if not path.is_file():
        raise FileNotFoundError(f"no labels at {path}; diffalign score DATA --write makes them")
    found = [_derive(records, row, where) for where, row in json_lines(path)]
    if not found:
        raise DataError(f"{path} holds no record")
    return found


def _line(item: Derived) -> dict[str, object]:
    record = item.record
    whole = {"of": item.of, "prompt": record.prompt, "images": list(item.images), "kind": record.kind}
    # Regions stay with the record it is made of; they may lie in files that no line can name.
    return {**whole, "values": list(record.values), **fields_of(replace(record, regions=None))}


def _derive(records: Sequence[Record], row: Row, where: str) -> Record:
    of, images, values = row.get("of"), row.get("images"), row.get("values")
    if not isinstance(of, int) or not 0 <= of < len(records):
        raise DataError(f"{where}: of is {of!r}, and the data hold {len(records)} records")
    base = records[of]
    if row.get("prompt") != base.prompt:
        raise DataError(
            f"{where}: the prompt is {row.get('prompt')!r}, that of record {of} is {base.prompt!r}; "
            "the labels belong to other data, or the data changed: score them again"
        )
    if not isinstance(images, list) or not all(
        isinstance(i, int) and 0 <= i < len(base.images) for i in images
    ):
        raise DataError(f"{where}: images is {images!r}; it must list positions of the record's images")
    if not isinstance(values, list) or not all(is_number(v) for v in values):
        raise DataError(f"{where}: values is {values!r}; it must be a list of numbers")
    if len(values) != len(images):
        raise DataError(f"{where}: {len(images)} images but {len(values)} values; there must be one for each")
    return with_fields(base.only(images, _kind(row, where), [float(v) for v in values]), row, None)


def _kind(row: Row, where: str) -> Kind:
    kinds: tuple[Kind, ...] = ("pair", "labels", "ranking")
    kind = next((k for k in kinds if k == row.get("kind")), None)
    if kind is None:
        raise DataError(f"{where}: kind is {row.get('kind')!r}; it must be pair, labels or ranking")
    return kind
