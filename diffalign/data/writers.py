"""Records to files, in every format that can be read: for samples, for exchange, and to test the readers."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffalign.data.fields import fields_of
from diffalign.data.records import DataError, Kind, Record, parquet

VOTERS = 100
"""Votes that a soft label is turned into."""


def write(records: Sequence[Record], path: str | Path, format: str) -> None:
    """Write records to ``path`` in a named format: pickapic, hpdv2, votes, folder_wl, folder or webdataset.

    Raises:
        DataError: an unknown format, no records, or a record that the format cannot hold.
    """
    if format not in WRITERS:
        raise DataError(f"no writer is called {format!r}; there are {', '.join(sorted(WRITERS))}")
    if not records:
        raise DataError(f"there are no records to write to {path}")
    WRITERS[format](records, Path(path))


def write_pickapic(records: Sequence[Record], path: Path, *, rows_per_group: int = 100) -> None:
    """One parquet file with the columns of Pick-a-Pic v2; hard labels only."""
    import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]

    rows = [_pickapic_row(number, record) for number, record in enumerate(records)]
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet().write_table(pa.Table.from_pylist(rows), path, row_group_size=rows_per_group)


def _pickapic_row(number: int, record: Record) -> dict[str, Any]:
    p0, p1 = _hard(record)
    images = [image.read() for image in record.images]
    uids = [hashlib.sha256(data).hexdigest()[:32] for data in images]
    models = record.models or (None, None)
    rater = int(record.rater) if record.rater is not None and record.rater.isdecimal() else None
    return {
        "are_different": images[0] != images[1],
        "best_image_uid": "tie" if p0 == p1 else uids[int(p1 > p0)],
        "caption": _one_prompt(record),
        "has_label": True,
        "image_0_uid": uids[0],
        "image_1_uid": uids[1],
        "jpg_0": images[0],
        "jpg_1": images[1],
        "label_0": p0,
        "label_1": p1,
        "model_0": models[0],
        "model_1": models[1],
        "ranking_id": number,
        "user_id": rater,
    }


def write_hpdv2(records: Sequence[Record], path: Path) -> None:
    """A folder with train.json (pairs, hard labels) or test.json (rankings), images below train/ or test/."""
    kind = _one_kind(records, ("pair", "ranking"))
    split = "train" if kind == "pair" else "test"
    entries = [_hpdv2_entry(record, path / split) for record in records]
    (path / f"{split}.json").write_text(json.dumps(entries, indent=1), encoding="utf-8")


def _hpdv2_entry(record: Record, folder: Path) -> dict[str, Any]:
    names = _save_images(record, folder)
    if record.kind == "pair":
        return {"human_preference": list(_hard(record)), "prompt": _one_prompt(record), "file_path": names}
    order = sorted(set(record.values), reverse=True)
    return {
        "prompt": _one_prompt(record),
        "image_path": names,
        "rank": [order.index(v) + 1 for v in record.values],
    }


def write_votes(records: Sequence[Record], path: Path) -> None:
    """A table of vote counts, ``.jsonl``, ``.csv`` or ``.parquet``, images below images/; p in hundredths."""
    rows = [_votes_row(record, path.parent) for record in records]
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".csv":
        with open(path, "w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    elif path.suffix == ".parquet":
        import pyarrow as pa

        parquet().write_table(pa.Table.from_pylist(rows), path)
    else:
        raise DataError(f"{path}: a vote table is called .jsonl, .csv or .parquet")


def _votes_row(record: Record, folder: Path) -> dict[str, Any]:
    _one_kind([record], ("pair",))
    votes = round(record.values[0] * VOTERS)
    names = [f"images/{name}" for name in _save_images(record, folder / "images")]
    row = {"prompt": _one_prompt(record), "image1": names[0], "image2": names[1]}
    models = dict(zip(("model1", "model2"), record.models or ("", ""), strict=True))
    return {**row, "votes_image1": votes, "votes_image2": VOTERS - votes, **models}


def write_folder_wl(records: Sequence[Record], path: Path) -> None:
    """Folders w/ and l/ with images of one name and captions beside both; clear winners only."""
    for number, record in enumerate(records):
        p0, p1 = _hard(record)
        if p0 == p1:
            raise DataError(
                f"{record.source or f'record {number}'}: w/l folders hold no ties; leave them out"
            )
        for side, image in zip(("w", "l"), (0, 1) if p0 > p1 else (1, 0), strict=True):
            data = record.images[image].read()
            file = path / side / f"{number:05d}{_suffix(data)}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
            file.with_suffix(".txt").write_text(record.prompt_of(image) + "\n", encoding="utf-8")


def write_folder(records: Sequence[Record], path: Path) -> None:
    """A folder with metadata.jsonl and images below images/; pairs, likes or rankings."""
    lines = [line for record in records for line in _folder_lines(record, path)]
    (path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _folder_lines(record: Record, path: Path) -> list[dict[str, Any]]:
    lines = []
    for part in _singles(record):
        names = [f"images/{name}" for name in _save_images(part, path / "images")]
        lines.append(folder_line(part, names))
    return lines


def folder_line(record: Record, names: Sequence[str]) -> dict[str, Any]:
    """Line of metadata.jsonl: a record whose images lie at these paths; likes have one image.

    Raises:
        DataError: a region that cannot be written.
    """
    common = {
        "prompt": record.prompt,
        "prompts": record.prompts,
        "rater": record.rater,
        "models": record.models or None,
    }
    common = {name: value for name, value in common.items() if value is not None} | fields_of(record)
    if record.kind == "labels":
        return {"image": names[0], **common, "label": record.values[0]}
    if record.kind == "ranking":
        return {"images": list(names), **common, "scores": record.values}
    label = "label_0" if record.values[0] in (0, 0.5, 1) else "probability_0"
    return {"image_0": names[0], "image_1": names[1], **common, label: record.values[0]}


def write_webdataset(records: Sequence[Record], path: Path, *, per_shard: int = 100) -> None:
    """A folder of tar shards; pairs, likes or rankings, with every field."""
    path.mkdir(parents=True, exist_ok=True)
    singles = [single for record in records for single in _singles(record)]
    for start in range(0, len(singles), per_shard):
        with tarfile.open(path / f"pairs-{start // per_shard:06d}.tar", "w") as tar:
            for number, record in enumerate(singles[start : start + per_shard], start):
                _add_sample(tar, f"{number:06d}", record)


def _singles(record: Record) -> list[Record]:
    """The record, or of likes one for each image."""
    if record.kind != "labels":
        return [record]
    parts = [record.only([i], "labels", [v]) for i, v in enumerate(record.values)]
    return [replace(part, prompt=part.prompt_of(0)) for part in parts]


def _add_sample(tar: tarfile.TarFile, key: str, record: Record) -> None:
    members = {}
    for i, image in enumerate(record.images):
        data = image.read()
        members[f"{i}{_suffix(data)}" if len(record.images) > 1 else _suffix(data)[1:]] = data
    names = list(members)
    line = {
        k: v
        for k, v in folder_line(record, names).items()
        if k not in ("image", "image_0", "image_1", "images")
    }
    members["json"] = json.dumps(line).encode()
    for extension, data in members.items():
        info = tarfile.TarInfo(f"{key}.{extension}")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))


def _save_images(record: Record, folder: Path) -> list[str]:
    """File names in ``folder``, made from the content, so that a shared image is written once."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for image in record.images:
        data = image.read()
        names.append(hashlib.sha256(data).hexdigest()[:16] + _suffix(data))
        (folder / names[-1]).write_bytes(data)
    return names


def _suffix(data: bytes) -> str:
    if data[:3] == b"\xff\xd8\xff":
        return ".jpg"
    return ".webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else ".png"


def _one_kind(records: Sequence[Record], allowed: tuple[Kind, ...]) -> Kind:
    kinds = {record.kind for record in records}
    if len(kinds) != 1 or not kinds <= set(allowed):
        raise DataError(
            f"this format holds {' or '.join(allowed)}, one kind per file; "
            f"the records are {', '.join(sorted(kinds))}"
        )
    return records[0].kind


def _hard(record: Record) -> tuple[float, float]:
    _one_kind([record], ("pair",))
    if record.values[0] not in (0, 0.5, 1):
        raise DataError(
            f"{record.source or 'record'}: the label {record.values[0]} is soft; this format needs 0, .5 or 1"
        )
    return record.values[0], record.values[1]


def _one_prompt(record: Record) -> str:
    if record.prompts is not None:
        raise DataError(
            f"{record.source or 'record'}: only folder and folder_wl can hold own captions per image"
        )
    return record.prompt


WRITERS: dict[str, Callable[[Sequence[Record], Path], None]] = {
    "pickapic": write_pickapic,
    "hpdv2": write_hpdv2,
    "votes": write_votes,
    "folder_wl": write_folder_wl,
    "folder": write_folder,
    "webdataset": write_webdataset,
}
"""Writers by the name of their format."""
