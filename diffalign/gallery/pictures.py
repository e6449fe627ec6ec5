"""Where a gallery's pictures go: into the file as data URIs, or into a folder beside it."""

from __future__ import annotations

import io
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from diffalign.gallery.folders import Joined, Shot
from diffalign.gallery.items import PNG_SIDE, WEBP_QUALITY, data_uri
from diffalign.gallery.payload import Content, Entry

_KINDS = {"JPEG": "jpeg", "PNG": "png", "WEBP": "webp"}
_OWN_FILE = re.compile(r"[0-9a-f]{64}\.[a-z]+")


def embedded(joined: Joined, limit: int | None) -> Content | None:
    """Return the gallery with its pictures as data URIs; None where these have more than ``limit`` bytes.

    Lossless pictures larger than ``PNG_SIDE`` become WebP; all others keep their bytes.
    """
    used = 0
    uris: dict[str, str] = {}
    for shot in joined.shots.values():
        if shot.row.sha256 not in uris:
            uris[shot.row.sha256] = _uri(shot)
        used += len(uris[shot.row.sha256])
        if limit is not None and used > limit:
            return None
    return content_of(joined, lambda shot: uris[shot.row.sha256])


def beside(joined: Joined, folder: str) -> Content:
    """Return the gallery with paths into ``folder``; a file's name is its sha256 and tells no model."""
    return content_of(joined, lambda shot: f"{folder}/{_name(shot)}")


def served(joined: Joined, query: str) -> Content:
    """Return the gallery with addresses that ``gallery serve`` answers, each followed by ``query``."""
    return content_of(joined, lambda shot: f"pictures/{_name(shot)}{query}")


def content_of(joined: Joined, source: Callable[[Shot], str]) -> Content:
    """Return the gallery whose pictures have the sources that ``source`` gives."""
    return Content(
        models=joined.models,
        seeds=joined.seeds,
        entries=[_entry(joined, row.prompt_id, source) for row in joined.prompts],
    )


@contextmanager
def folder_of(joined: Joined, folder: Path) -> Iterator[None]:
    """Copy the pictures into ``folder`` for the page that the block writes; take them away if it fails.

    Raises:
        FileExistsError: the folder holds files that no gallery wrote.
    """
    strangers = [f for f in folder.glob("*") if not _OWN_FILE.fullmatch(f.name)]
    if strangers:
        raise FileExistsError(f"{strangers[0]} is no picture of a gallery: choose another name for the page")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        new, old = Path(scratch) / "new", Path(scratch) / "old"
        new.mkdir()
        for shot in joined.shots.values():
            shutil.copyfile(shot.file, new / _name(shot))
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        try:
            yield
        except BaseException:
            shutil.rmtree(folder)
            if old.exists():
                old.rename(folder)
            raise


def _entry(joined: Joined, name: str, source: Callable[[Shot], str]) -> Entry:
    shots = [[joined.shots[model, name, seed] for seed in joined.seeds] for model in joined.models]
    first = shots[0][0].row
    return Entry(
        prompt_id=name,
        prompt=first.prompt,
        category=first.category,
        challenge=first.challenge,
        width=first.width,
        height=first.height,
        sources=[[source(shot) for shot in line] for line in shots],
        sha256=[[shot.row.sha256 for shot in line] for line in shots],
        scores={judge: [[shot.scores[judge] for shot in line] for line in shots] for judge in joined.judges},
    )


def _name(shot: Shot) -> str:
    return f"{shot.row.sha256}{shot.file.suffix.lower()}"


def _uri(shot: Shot) -> str:
    content = shot.file.read_bytes()
    with Image.open(io.BytesIO(content)) as image:
        kind = _KINDS.get(image.format or "")
        if kind is None:
            raise ValueError(f"{shot.file} is {image.format}: a gallery shows PNG, WebP and JPEG")
        if kind != "png" or max(image.size) <= PNG_SIDE:
            return data_uri(kind, content)
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "WEBP", quality=WEBP_QUALITY)
    return data_uri("webp", buffer.getvalue())
