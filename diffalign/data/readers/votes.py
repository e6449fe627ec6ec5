"""Tables of vote counts (jsonl, csv or parquet): many people saw each pair, so labels are soft."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator
from pathlib import Path

from diffalign.data.readers.base import (
    Reader,
    Row,
    caption,
    image_file,
    json_lines,
    open_parquet,
    parquet_columns,
    parquet_files,
    readers,
    require,
    utf8,
)
from diffalign.data.records import DataError, ImageSource, ParquetImage, Record

REQUIRED = ("prompt", "image1", "image2", "votes_image1", "votes_image2")
OPTIONAL = ("model1", "model2")

logger = logging.getLogger(__name__)


@readers.register("votes")
class Votes(Reader):
    """Paths are relative to the table; parquet may hold the images. Pairs nobody voted on are left out."""

    summary = "jsonl, csv or parquet with prompt, image1, image2, votes_image1, votes_image2"

    def matches(self, path: Path) -> bool:
        """Whether the table has a column of votes."""
        if path.suffix in (".jsonl", ".csv") and path.is_file():
            return "votes_image1" in next(_rows(path), ("", {}))[1]
        return "votes_image1" in parquet_columns(path)

    def records(self, path: Path) -> Iterator[Record]:
        """Yield a soft pair per row."""
        unseen = 0
        for where, row in _rows(path):
            require(row, REQUIRED, where)
            counts = [_count(row[name], name, where) for name in ("votes_image1", "votes_image2")]
            unseen += sum(counts) == 0
            if sum(counts):
                yield _pair(row, counts, path.parent, where)
        if unseen:
            logger.warning("%s: %d pairs have no votes and were left out", path, unseen)


def _pair(row: Row, counts: list[float], folder: Path, where: str) -> Record:
    p = counts[0] / sum(counts)
    models = [row.get(name) for name in OPTIONAL]
    return Record(
        prompt=caption(row, "prompt", where),
        images=tuple(_image(row[name], name, folder, where) for name in ("image1", "image2")),
        kind="pair",
        values=(p, 1 - p),
        models=tuple(map(str, models)) if all(models) else (),
        source=where,
    )


def _count(value: object, name: str, where: str) -> float:
    try:
        count = float(str(value))
    except ValueError:
        count = -1.0
    if not 0 <= count < float("inf"):
        raise DataError(f"{where}: {name} is {value!r}; it must be a number of votes, 0 or more")
    return count


def _image(value: object, name: str, folder: Path, where: str) -> ImageSource:
    return value if isinstance(value, ParquetImage) else image_file(folder, value, name, where)


def _rows(path: Path) -> Iterator[tuple[str, Row]]:
    if path.suffix == ".jsonl":
        yield from json_lines(path)
    elif path.suffix == ".csv":
        with utf8(path), open(path, encoding="utf-8-sig", newline="") as table:
            yield from ((f"{path} row {i}", row) for i, row in enumerate(csv.DictReader(table), 1))
    else:
        for file in parquet_files(path):
            yield from _parquet_rows(file)


def _parquet_rows(file: Path) -> Iterator[tuple[str, Row]]:
    table = open_parquet(file)
    require(table.schema_arrow.names, REQUIRED, str(file))
    # A column of paths is text; anything else holds the images themselves and stays on disk.
    stored = [
        c
        for c in ("image1", "image2")
        if str(table.schema_arrow.field(c).type) not in ("string", "large_string")
    ]
    wanted = [c for c in (*REQUIRED, *OPTIONAL) if c in table.schema_arrow.names and c not in stored]
    offset = 0
    for group in range(table.num_row_groups):
        rows = table.read_row_group(group, columns=wanted).to_pylist()
        for number, row in enumerate(rows):
            images = {c: ParquetImage(file, group, number, c, offset) for c in stored}
            yield f"{file} row {offset + number}", {**row, **images}
        offset += len(rows)
