"""HPDv2: train.json with pairs, test.json with rankings, images beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffalign.data.readers.base import Reader, Row, caption, hard_pair, image_file, is_number, readers, utf8
from diffalign.data.records import DataError, Record


@readers.register("hpdv2")
class HPDv2(Reader):
    """``human_preference`` makes a pair, ``rank`` (per image, 1 is best) a ranking."""

    summary = "train.json or test.json with prompt, file_path or image_path, human_preference or rank"

    def matches(self, path: Path) -> bool:
        """Whether it is a json file, or a folder with train.json or test.json."""
        return (path.is_file() and path.suffix == ".json") or any(
            (path / f"{s}.json").is_file() for s in ("train", "test")
        )

    def records(self, path: Path) -> Iterator[Record]:
        """Yield the pairs of train.json (first choice in a folder) or the rankings of test.json."""
        file = (
            path
            if path.is_file()
            else next(f for f in (path / "train.json", path / "test.json") if f.is_file())
        )
        rows = _load(file)
        folder = _image_folder(file, rows[0]) if rows else file.parent
        for number, row in enumerate(rows):
            yield _record(row, folder, f"{file} entry {number}")


def _load(file: Path) -> list[Any]:
    try:
        with utf8(file):
            rows = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{file}: not valid JSON ({error.msg} at line {error.lineno})") from None
    if not isinstance(rows, list):
        raise DataError(f"{file}: HPDv2 is a JSON list of entries, got {type(rows).__name__}")
    return rows


def _paths(row: Row, where: str) -> list[str]:
    paths = row.get("file_path", row.get("image_path")) if isinstance(row, dict) else None
    if not isinstance(paths, list) or not paths:
        raise DataError(f"{where}: file_path (or image_path) must be a list of image paths, got {paths!r}")
    return paths


def _image_folder(file: Path, first: Row) -> Path:
    """Folder that the paths are relative to: that of the json file, or one below it called like the split."""
    name = str(_paths(first, f"{file} entry 0")[0])
    places = [file.parent, file.parent / file.stem, file.parent / "images"]
    found = next((p for p in places if (p / name).is_file()), None)
    if found is None:
        raise DataError(
            f"{file}: image {name!r} is in none of {', '.join(map(str, places))}; unpack the images there"
        )
    return found


def _record(row: Row, folder: Path, where: str) -> Record:
    paths = _paths(row, where)
    images = tuple(image_file(folder, p, "image path", where) for p in paths)
    prompt = caption(row, "prompt", where)
    preference, rank = row.get("human_preference"), row.get("rank")
    if isinstance(preference, list) and len(preference) == 2:
        values = hard_pair(
            preference[0], preference[1], ("human_preference[0]", "human_preference[1]"), where
        )
        return Record(prompt=prompt, images=images, kind="pair", values=values, source=where)
    if isinstance(rank, list) and all(is_number(r) for r in rank):
        return Record(
            prompt=prompt, images=images, kind="ranking", values=tuple(-float(r) for r in rank), source=where
        )
    raise DataError(f"{where}: neither human_preference (two labels) nor rank (a number per image) is there")
