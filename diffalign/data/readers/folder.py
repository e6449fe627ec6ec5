"""A folder of images with metadata.jsonl: pairs, likes or rankings, one JSON object per line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from diffalign.data.fields import with_fields
from diffalign.data.readers.base import (
    Reader,
    Row,
    caption,
    hard_label,
    hard_pair,
    image_file,
    is_number,
    json_lines,
    readers,
    text,
    texts,
)
from diffalign.data.records import DataError, ImageSource, Kind, Record


@readers.register("folder")
class Folder(Reader):
    """Lines of three kinds.

    Pairs: image_0, image_1, prompt and prefer_0/prefer_1 (both false: a tie), label_0, or
    probability_0 (soft).
    Likes: image (or file_name), prompt, label. Rankings: images, prompt, scores (higher is better).
    Optional everywhere: prompts (own caption per image), rater, models; margin, weight, soft, score, judged,
    distance, regions (see Record).
    """

    summary = (
        "folder with metadata.jsonl: image_0, image_1, label_0 or image, label or images, scores; prompt"
    )

    def matches(self, path: Path) -> bool:
        """Whether there is a metadata.jsonl."""
        return (path / "metadata.jsonl").is_file() or path.name == "metadata.jsonl"

    def records(self, path: Path) -> Iterator[Record]:
        """Yield a record per line."""
        file = path if path.name == "metadata.jsonl" else path / "metadata.jsonl"
        if not file.is_file():
            raise DataError(f"{file} is missing; write one JSON object per line ({self.summary})")
        for where, row in json_lines(file):
            yield _record(row, file.parent, where)


def _record(row: Row, folder: Path, where: str) -> Record:
    kind, paths, values = judgement(row, where)
    images = tuple(image_file(folder, path, "image", where) for path in paths)
    return record_of(row, images, kind, values, folder, where)


def record_of(
    row: Row, images: tuple[ImageSource, ...], kind: Kind, values: tuple[float, ...], masks: Path | None,
    where: str,
) -> Record:  # fmt: skip
    """Record of a JSON row and its images; ``masks`` is the folder of masks, None where none can be."""
    record = Record(
        prompt=caption(row, "prompt", where),
        images=images,
        kind=kind,
        values=values,
        prompts=texts(row, "prompts", where),
        rater=text(row.get("rater", row.get("user_id"))),
        models=texts(row, "models", where) or (),
        source=where,
    )
    return with_fields(record, row, masks)


def judgement(row: Row, where: str) -> tuple[Kind, list[object], tuple[float, ...]]:
    """Kind, image paths and values of a line."""
    if "image_0" in row:
        return "pair", [row["image_0"], row.get("image_1")], pair_values(row, where)
    if "images" in row:
        paths = row["images"]
        if not isinstance(paths, list):
            raise DataError(f"{where}: images is {paths!r}; a ranking needs a list of image paths")
        return "ranking", paths, ranking_values(row, where)
    if "image" in row or "file_name" in row:
        return (
            "labels",
            [row.get("image", row.get("file_name"))],
            (hard_label(row.get("label"), "label", where),),
        )
    raise DataError(f"{where}: no image; a line needs image_0 and image_1, or image, or images")


def ranking_values(row: Row, where: str) -> tuple[float, ...]:
    """Scores of a ranking, higher is better."""
    scores = row.get("scores")
    if not isinstance(scores, list) or not all(is_number(s) for s in scores):
        raise DataError(f"{where}: scores is {scores!r}; a ranking needs a list with a number per image")
    return tuple(map(float, scores))


def pair_values(row: Row, where: str) -> tuple[float, float]:
    """(p0, p1) of a pair, from prefer_0 and prefer_1, probability_0, or label_0."""
    if "prefer_0" in row:
        first, second = (
            hard_label(row["prefer_0"], "prefer_0", where),
            hard_label(row.get("prefer_1"), "prefer_1", where),
        )
        return (
            (0.5, 0.5) if first == second == 0 else hard_pair(first, second, ("prefer_0", "prefer_1"), where)
        )
    if "probability_0" in row:
        p = row["probability_0"]
        if not is_number(p) or not 0 <= p <= 1:
            raise DataError(f"{where}: probability_0 is {p!r}; it must be in [0, 1]")
        return float(p), 1 - float(p)
    return hard_pair(row.get("label_0"), row.get("label_1"), ("label_0", "label_1"), where)
