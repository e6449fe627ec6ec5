"""A folder of images that nobody judged yet: captions beside them, or in metadata.jsonl without labels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from diffalign.data.readers.base import (
    IMAGE_SUFFIXES,
    Reader,
    caption,
    image_file,
    json_lines,
    readers,
    utf8,
)
from diffalign.data.records import DataError, FileImage, ImageSource, Record


@readers.register("images")
class Images(Reader):
    """One record of unknown likes per prompt; ``diffalign score --write`` ranks or pairs them.

    ``x.png`` has its caption in ``x.txt``; or metadata.jsonl has lines with image (or file_name) and prompt.
    The folder\'s name stands for what made the images.
    """

    summary = "folder of images with captions x.txt, or metadata.jsonl with image and prompt and no label"

    def matches(self, path: Path) -> bool:
        """Whether there is an image with a caption and no metadata.jsonl, which is taken for judged data."""
        if not path.is_dir() or (path / "metadata.jsonl").is_file():
            return False
        return any(
            f.suffix.lower() in IMAGE_SUFFIXES and f.with_suffix(".txt").is_file() for f in path.iterdir()
        )

    def records(self, path: Path) -> Iterator[Record]:
        """Yield a record per prompt, in the order of their first images."""
        found: dict[str, list[FileImage]] = {}
        for prompt, image in _lines(path) if (path / "metadata.jsonl").is_file() else _files(path):
            found.setdefault(prompt, []).append(image)
        for prompt, images in found.items():
            yield Record(
                prompt=prompt,
                images=tuple[ImageSource, ...](images),
                kind="labels",
                values=(0.5,) * len(images),
                models=(path.resolve().name,) * len(images),
                source=f"{path} prompt {prompt!r}",
            )


def _lines(path: Path) -> Iterator[tuple[str, FileImage]]:
    for where, row in json_lines(path / "metadata.jsonl"):
        yield (
            caption(row, "prompt", where),
            image_file(path, row.get("image", row.get("file_name")), "image", where),
        )


def _files(path: Path) -> Iterator[tuple[str, FileImage]]:
    for file in sorted(path.iterdir()):
        if file.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        text = file.with_suffix(".txt")
        if not text.is_file():
            raise DataError(f"{file}: the caption is missing; write it to {text}")
        with utf8(text):
            yield text.read_text(encoding="utf-8").strip(), FileImage(file)
