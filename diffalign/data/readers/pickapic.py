"""Pick-a-Pic v1 and v2: parquet files whose columns jpg_0 and jpg_1 hold the images themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from diffalign.data.readers.base import (
    Reader,
    Row,
    caption,
    hard_pair,
    open_parquet,
    parquet_columns,
    parquet_files,
    readers,
    require,
    text,
)
from diffalign.data.records import DataError, ParquetImage, Record

REQUIRED = ("caption", "jpg_0", "jpg_1", "label_0")
OPTIONAL = ("label_1", "has_label", "user_id", "model_0", "model_1")


@readers.register("pickapic")
class PickAPic(Reader):
    """Rows without a label are left out; 0.5 is a tie; label_0 = 0 means that the second image won."""

    summary = "parquet with caption, jpg_0, jpg_1, label_0"

    def matches(self, path: Path) -> bool:
        """Whether the first parquet file has columns that only Pick-a-Pic has."""
        return bool(parquet_columns(path) & {"jpg_0", "label_0", "image_0_uid"})

    def records(self, path: Path) -> Iterator[Record]:
        """Yield the labelled pairs of all files, file by file."""
        for file in parquet_files(path):
            yield from _pairs(file)


def _pairs(file: Path) -> Iterator[Record]:
    table = open_parquet(file)
    columns = table.schema_arrow.names
    if "jpg_0" not in columns and "image_0_uid" in columns:
        raise DataError(
            f"{file}: the images are missing (columns jpg_0, jpg_1); this is the variant without images"
        )
    require(columns, REQUIRED, str(file))
    wanted = [c for c in (*REQUIRED, *OPTIONAL) if c in columns and not c.startswith("jpg_")]
    offset = 0
    for group in range(table.num_row_groups):
        # Images stay on disk: only the small columns are read here.
        rows = table.read_row_group(group, columns=wanted).to_pylist()
        for number, row in enumerate(rows):
            if row.get("has_label") is not False:
                images = tuple(ParquetImage(file, group, number, c, offset) for c in ("jpg_0", "jpg_1"))
                yield _pair(row, images, f"{file} row {offset + number}")
        offset += len(rows)


def _pair(row: Row, images: tuple[ParquetImage, ...], where: str) -> Record:
    models = (row.get("model_0"), row.get("model_1"))
    return Record(
        prompt=caption(row, "caption", where),
        images=images,
        kind="pair",
        values=hard_pair(row["label_0"], row.get("label_1"), ("label_0", "label_1"), where),
        rater=text(row.get("user_id")),
        models=tuple(map(str, models)) if None not in models else (),
        source=where,
    )
