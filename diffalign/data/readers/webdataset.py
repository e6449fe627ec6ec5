"""webdataset: tar shards whose members ``key.extension`` with one key are one sample."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from glob import glob, has_magic
from itertools import groupby
from pathlib import Path
from typing import Any

from diffalign.data.readers.base import IMAGE_SUFFIXES, Reader, hard_label, readers
from diffalign.data.readers.folder import pair_values, ranking_values, record_of
from diffalign.data.records import DataError, Kind, Record, TarImage

PICTURES = frozenset(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)
NUMBERED = re.compile(r"(?:(?P<before>\w+)_(?P<n0>\d+)|(?:\w+_)?(?P<n1>\d+)\.(?P<after>\w+))")
"""jpg_0; 0.jpg or image_0.jpg."""
RENAMED = {"caption": "prompt", "txt": "prompt", "text": "prompt", "cls": "label", "user_id": "rater"}
WORDS = ("prompt", "rater", "model_0", "model_1")
"""Members and fields that are text, whatever they look like; all others are JSON."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Member:
    """One file of a shard, by its place, so that its bytes need not be read yet."""

    key: str
    extension: str
    offset: int
    size: int


@readers.register("webdataset")
class WebDataset(Reader):
    """Images are ``key.jpg_0, key.jpg_1`` or ``key.0.jpg, key.1.jpg, ...``, or one ``key.jpg`` of a like.

    The judgement is in ``key.json`` (fields as in metadata.jsonl) or in members of its own: ``key.label_0``,
    ``key.label_1``, ``key.cls`` (of a like); the prompt in ``key.caption`` or ``key.txt`` if not in the JSON.
    Samples with ``has_label`` false are left out.
    """

    summary = (
        "tar shards with key.jpg_0, key.jpg_1, key.label_0, key.caption, or key.0.jpg, key.1.jpg, key.json"
    )

    def matches(self, path: Path) -> bool:
        """Whether there is a tar file."""
        return bool(tar_files(path))

    def records(self, path: Path) -> Iterator[Record]:
        """Yield the samples of all shards, sorted by name, in the order of each."""
        files = tar_files(path)
        if not files:
            raise DataError(
                f"{path}: there is no tar file; name one, a folder, or a pattern such as pairs-*.tar"
            )
        for file in files:
            for key, members in groupby(_members(file), key=lambda m: m.key):
                record = _record(file, list(members), f"{file} sample {key}")
                if record is not None:
                    yield record


def tar_files(path: Path) -> list[Path]:
    """Shards of a file, a glob pattern or a folder, sorted by path."""
    if has_magic(str(path)) and not path.exists():
        return sorted(Path(p) for p in glob(str(path)) if p.endswith(".tar"))
    if path.is_dir():
        return sorted(path.glob("*.tar"))
    return [path] if path.suffix == ".tar" else []


def _members(file: Path) -> Iterator[_Member]:
    """Files of a shard; only the headers are read."""
    try:
        with tarfile.open(file, "r:") as tar:
            for info in tar:
                folder, _, name = info.name.rpartition("/")
                if info.isfile() and not name.startswith("."):
                    stem, _, extension = name.partition(".")
                    key = f"{folder}/{stem}" if folder else stem
                    yield _Member(
                        key=key, extension=extension.lower(), offset=info.offset_data, size=info.size
                    )
    except tarfile.TarError as error:
        raise DataError(
            f"{file} is no whole, uncompressed tar file ({error}); fetch it again, or unpack it with gunzip"
        ) from error


def _record(file: Path, members: list[_Member], where: str) -> Record | None:
    """Record of one sample; None where it says that it has no label."""
    sample = {m.extension: m for m in members}
    if len(sample) < len(members):
        raise DataError(
            f"{where}: an extension is there twice; the samples of a shard need keys of their own"
        )
    row = _row(file, sample, where)
    if row.get("has_label") is False:
        return None
    images = tuple(
        TarImage(file, sample[e].offset, sample[e].size, f"{where} {e}") for e in _pictures(sample, where)
    )
    kind, values = _judgement(row, len(images), where)
    return record_of(row, images, kind, values, None, where)


def _row(file: Path, sample: Mapping[str, _Member], where: str) -> dict[str, Any]:
    """Everything but the images: the JSON's fields, then the members of their own."""
    row: dict[str, Any] = {}
    for extension, member in sorted(sample.items(), key=lambda item: item[0] != "json"):
        if _number(extension) is not None:
            continue
        data = TarImage(file, member.offset, member.size, f"{where} {extension}").read()
        name = re.sub(r"(?<=.)\.(txt|cls)$", "", extension)
        name = RENAMED.get(name, name)
        row |= _parsed_json(data, where) if extension == "json" else {name: _parsed(name, data, where)}
    models = [row.get("model_0"), row.get("model_1")]
    if "models" not in row and None not in models:
        row["models"] = [str(m) for m in models]
    return row


def _parsed_json(data: bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError as error:  # not JSON, or not UTF-8
        raise DataError(f"{where}: its json is not valid ({error})") from None
    if not isinstance(found, dict):
        raise DataError(f"{where}: its json must be an object with named fields, got {type(found).__name__}")
    return {RENAMED.get(str(name), str(name)): value for name, value in found.items()}


def _parsed(name: str, data: bytes, where: str) -> Any:
    """Value of a member of its own: text, or whatever its JSON says."""
    try:
        text = data.decode().strip()
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: {name} is not UTF-8 ({error.reason}); save it as UTF-8") from error
    if name in WORDS:
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _number(extension: str) -> int | None:
    """Number of an image: 1 of ``jpg_1``, ``1.jpg`` or ``image_1.jpg``, -1 of ``jpg``; None is no image."""
    found = NUMBERED.fullmatch(extension)
    if found is not None and (found["before"] or found["after"]) in PICTURES:
        return int(found["n0"] or found["n1"])
    return -1 if extension in PICTURES else None


def _pictures(sample: Mapping[str, _Member], where: str) -> list[str]:
    """Extensions of the images in order of their numbers: 0, 1, ... without a gap, or the one image."""
    found = sorted((n, e) for e in sample if (n := _number(e)) is not None)
    numbers = [n for n, _ in found]
    if not found or numbers not in ([-1], list(range(len(found)))):
        raise DataError(
            f"{where}: its images are {', '.join(e for _, e in found) or 'missing'}; they must be numbered "
            "from 0, as jpg_0 and jpg_1 or 0.jpg and 1.jpg, or be one jpg"
        )
    return [e for _, e in found]


def _judgement(row: Mapping[str, Any], images: int, where: str) -> tuple[Kind, tuple[float, ...]]:
    if "scores" in row:
        return "ranking", ranking_values(row, where)
    if images == 1:
        return "labels", (hard_label(row.get("label"), "label", where),)
    if images != 2:
        raise DataError(f"{where}: {images} images and no scores; a ranking needs a number per image")
    return "pair", pair_values(row, where)
