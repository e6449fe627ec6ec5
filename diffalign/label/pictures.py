"""Every picture of files, folders, parquet tables and webdataset shards, with its prompt, judged or not."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffalign.data.readers.base import IMAGE_SUFFIXES, image_file, json_lines, open_parquet, utf8
from diffalign.data.records import DataError, FileImage, ImageSource, ParquetImage, TarImage

PROMPTS = ("prompt", "caption", "text", "txt")
"""Names of fields, columns and members that hold the prompt; the first one that is there."""
IMAGE_FIELDS = ("image", "file_name", "image_0", "image_1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One picture to be scored."""

    key: str
    """Its place, unique among all: path, table and row, or shard and sample."""
    image: ImageSource
    prompt: str | None
    """None where none stands beside it."""


def pictures(paths: Sequence[Path], prompt: str | None = None) -> list[Picture]:
    """Pictures of all paths, in a fixed order.

    Prompts come from ``metadata.jsonl`` or ``x.txt`` beside ``x.png``; from a column or member called prompt,
    caption, text or txt. A folder is searched with its sub-folders.

    Args:
        paths: picture files, folders, ``.parquet`` and ``.tar`` files, any mixture.
        prompt: given, it stands for all of them.

    Raises:
        FileNotFoundError: a path does not exist.
        DataError: no picture at all, or the same one twice.
    """
    found = [p for path in paths for p in _of(path)]
    if not found:
        raise DataError(f"there is no picture in {', '.join(map(str, paths))}")
    seen: set[str] = set()
    for picture in found:
        if picture.key in seen:
            raise DataError(f"{picture.key} is named twice; name each file or folder once")
        seen.add(picture.key)
    if prompt is None:
        return found
    return [Picture(key=p.key, image=p.image, prompt=prompt) for p in found]


def _of(path: Path) -> Iterator[Picture]:
    if not path.exists():
        raise FileNotFoundError(f"there is nothing at {path}")
    if path.is_dir():
        yield from _folder(path)
    elif path.suffix == ".parquet":
        yield from _table(path)
    elif path.suffix == ".tar":
        yield from _shard(path)
    else:
        yield Picture(key=str(path), image=FileImage(path), prompt=_beside(path))


def _folder(path: Path) -> Iterator[Picture]:
    """What is listed in metadata.jsonl, else all files."""
    if (path / "metadata.jsonl").is_file():
        yield from _listed(path)
        return
    for file in sorted(path.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if file.suffix.lower() in IMAGE_SUFFIXES | {".parquet", ".tar"} and file.is_file() and not hidden:
            yield from _of(file)


def _listed(folder: Path) -> Iterator[Picture]:
    """Pictures of metadata.jsonl; one that stands in several lines is scored once for each prompt."""
    prompts: dict[str, list[str | None]] = {}
    for where, row in json_lines(folder / "metadata.jsonl"):
        names = [row[f] for f in IMAGE_FIELDS if f in row] + list(row.get("images") or ())
        if not names:
            raise DataError(f"{where}: no picture is named; give one of {', '.join(IMAGE_FIELDS)}, images")
        own = row.get("prompts") or [_text(row)] * len(names)
        for name, text in zip(names, own, strict=True):
            image, before = image_file(folder, name, "image", where), prompts.setdefault(str(name), [])
            if text not in before:
                number = f" prompt {len(before)}" if before else ""
                before.append(text)
                yield Picture(key=f"{image.path}{number}", image=image, prompt=text)


def _beside(file: Path) -> str | None:
    text = file.with_suffix(".txt")
    if not text.is_file():
        return None
    with utf8(text):
        return text.read_text(encoding="utf-8").strip()


def _table(file: Path) -> Iterator[Picture]:
    """Every binary column, and every struct with a ``bytes`` field, holds pictures."""
    table = open_parquet(file)
    types = {f.name: str(f.type) for f in table.schema_arrow}
    columns = [n for n, t in types.items() if "binary" in t and (t.endswith("binary") or "bytes:" in t)]
    text = next((n for n in PROMPTS if n in types), None)
    if not columns:
        raise DataError(f"{file}: no column holds encoded images; there are {', '.join(types)}")
    offset = 0
    for group in range(table.num_row_groups):
        rows = table.metadata.row_group(group).num_rows
        texts = (
            table.read_row_group(group, columns=[text]).column(text).to_pylist() if text else [None] * rows
        )
        for row in range(rows):
            for column in columns:
                image = ParquetImage(file, group, row, column, offset)
                yield Picture(key=image.where, image=image, prompt=texts[row])
        offset += rows


def _shard(file: Path) -> Iterator[Picture]:
    """Samples of a webdataset shard: members with one key in front of the first dot."""
    sample: dict[str, tuple[int, int]] = {}
    key: str | None = None
    try:
        with tarfile.open(file, "r:") as tar:
            for info in tar:
                folder, _, name = info.name.rpartition("/")
                if not info.isfile() or name.startswith("."):
                    continue
                stem, _, extension = name.partition(".")
                mine = f"{folder}/{stem}" if folder else stem
                if key is not None and mine != key:
                    yield from _sample(file, key, sample)
                    sample = {}
                key = mine
                sample[extension.lower()] = (info.offset_data, info.size)
    except tarfile.TarError as error:
        raise DataError(f"{file} is no whole, uncompressed tar file ({error}); fetch it again") from error
    if key is not None:
        yield from _sample(file, key, sample)


def _sample(file: Path, key: str, sample: Mapping[str, tuple[int, int]]) -> Iterator[Picture]:
    suffixes = {s[1:] for s in IMAGE_SUFFIXES}
    prompt = _sample_prompt(file, f"{file} sample {key}", sample)
    for extension, (offset, size) in sample.items():
        if suffixes & {part.rpartition("_")[0] or part for part in extension.split(".")}:
            where = f"{file} sample {key} {extension}"
            yield Picture(key=where, image=TarImage(file, offset, size, where), prompt=prompt)


def _sample_prompt(file: Path, where: str, sample: Mapping[str, tuple[int, int]]) -> str | None:
    for name in (*PROMPTS, "json"):
        if name in sample:
            data = TarImage(file, *sample[name], where).read()
            try:
                text = data.decode()
                return text.strip() if name != "json" else _text(json.loads(text))
            except (ValueError, AttributeError) as error:
                raise DataError(f"{where}: {name} cannot be read ({error})") from error
    return None


def _text(row: Mapping[str, Any]) -> str | None:
    found = next((row[n] for n in PROMPTS if n in row), None)
    return found if found is None or isinstance(found, str) else str(found)
