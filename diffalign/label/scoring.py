"""One pass of scorers over a data set: each image is decoded once, and what was scored is kept."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffalign.data.keys import content_key
from diffalign.data.records import DataError, ImageSource, Record
from diffalign.data.store import Store
from diffalign.data.transform import BadImageError, decode
from diffalign.label.features import encode
from diffalign.label.judges import Judge

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with (images done, in all)."""


class ScoreBook:
    """Scores of one scorer by key, in a jsonl file that only grows; a line cut off does not count."""

    def __init__(self, file: Path) -> None:
        """Read what is there."""
        self.file = file
        self.scores: dict[str, float] = {}
        if file.is_file():
            for line in file.read_text(encoding="utf-8").splitlines():
                if line.endswith("]"):
                    key, score = json.loads(line)
                    self.scores[key] = score

    def add(self, rows: Sequence[tuple[str, float]]) -> None:
        """Write scores down at once."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with open(self.file, "a+", encoding="utf-8") as file:
            file.write("".join("\n" + json.dumps(row) for row in rows))
        self.scores.update(rows)


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Records that could be read, with their scores."""

    records: list[Record]
    """With ``judged`` filled."""
    places: list[int]
    """Position of each in the list that was scored."""
    keys: list[list[str]]
    """Key of each record's images, the same for the same bytes under the same prompt."""
    features: list[NDArray[np.float64]]
    """(n, D) unit features of each record's images; empty where none were asked for."""
    bad: list[tuple[str, str]] = field(default_factory=list)
    """(where, reason) of each unreadable image."""
    made: int = 0
    """Scores made now."""
    found: int = 0
    """Scores that were kept from before."""


def score_records(
    records: Sequence[Record],
    judges: Sequence[Judge],
    cache: Path,
    *,
    features: bool = False,
    feature_judge: Judge | None = None,
    batch: int = 32,
    max_bad_share: float = 0.01,
    progress: Progress | None = None,
) -> Scored:
    """Score every image of every record for its own prompt, and keep the scores in ``cache`` by content.

    Args:
        records: what is scored.
        judges: scorers.
        cache: folder; may be shared.
        features: whether features of the images are wanted.
        feature_judge: scorer whose image tower gives the features; None takes the pixels.
        batch: pictures that go through a scorer at once.
        max_bad_share: share of images that may be unreadable; their records are left out.
        progress: called as work gets done.

    Raises:
        DataError: no records, too many unreadable images, or a score that is not finite.
    """
    if not records:
        raise DataError("there is no record to score")
    work = _Pass(judges, cache, batch, feature_judge if features else None, features)
    total, keys = sum(len(r.images) for r in records), []
    try:
        for record in records:
            keys.append(work.keys(record))
            if len(work.bad) > max_bad_share * total:
                raise DataError(_too_many(work.bad, total, max_bad_share))
            if progress is not None:
                progress(work.seen, total)
        work.flush()
    finally:
        work.store.flush()
    places = [i for i, row in enumerate(keys) if row is not None]
    if not places:
        raise DataError("no record has only images that can be read")
    judged = [{**records[i].judged, **work.scores(keys[i] or [])} for i in places]
    return Scored(
        records=[replace(records[i], judged=j) for i, j in zip(places, judged, strict=True)],
        places=places,
        keys=[keys[i] or [] for i in places],
        features=[work.features(keys[i] or []) for i in places] if features else [],
        bad=work.bad, made=work.made, found=work.found,
    )  # fmt: skip


class _Pass:
    """State of one pass: what is kept, and the pictures that wait for a full batch."""

    def __init__(
        self, judges: Sequence[Judge], cache: Path, batch: int, encoder: Judge | None, features: bool
    ) -> None:
        self.judges, self.batch, self.encoder, self.wants_features = judges, batch, encoder, features
        self.books = {j.name: ScoreBook(cache / "scores" / f"{j.id[:32]}.jsonl") for j in judges}
        self.store = Store(cache / "features")
        self.space = encoder.id if encoder is not None else "pixels 8"
        self.pending: dict[str, tuple[str, Tensor]] = {}
        self.bad: list[tuple[str, str]] = []
        self.seen = self.made = self.found = 0

    def keys(self, record: Record) -> list[str] | None:
        """Key of each image with its prompt; None where an image cannot be read."""
        try:
            return [self._key(image, record.prompt_of(i)) for i, image in enumerate(record.images)]
        except BadImageError as error:
            self.bad.append((error.where, error.reason))
            logger.warning("left out: %s", error)
            return None
        finally:
            self.seen += len(record.images)

    def _key(self, image: ImageSource, prompt: str) -> str:
        data = _bytes(image)
        digest = hashlib.sha256(data).hexdigest()
        key = f"{digest}.{content_key(prompt)[:32]}"
        if key not in self.pending:
            lacking = [book for book in self.books.values() if key not in book.scores]
            self.found += len(self.books) - len(lacking)
            if lacking or (self.wants_features and self._place(key) not in self.store):
                pixels = np.asarray(decode(data, image.where))
                self.pending[key] = (prompt, torch.from_numpy(pixels.copy()).permute(2, 0, 1))
            if len(self.pending) >= self.batch:
                self.flush()
        return key

    def _place(self, key: str) -> str:
        return content_key("features", self.space, key.partition(".")[0])

    def flush(self) -> None:
        """Score what waits, pictures of one size at once."""
        sizes: dict[torch.Size, list[str]] = defaultdict(list)
        for key, (_, picture) in self.pending.items():
            sizes[picture.shape].append(key)
        for keys in sizes.values():
            self._score([k for k in keys if any(k not in b.scores for b in self.books.values())])
            self._encode([k for k in keys if self.wants_features and self._place(k) not in self.store])
        self.pending = {}

    def _pictures(self, keys: Sequence[str]) -> Tensor:
        return torch.stack([self.pending[key][1] for key in keys]).float() / 255

    def _score(self, keys: Sequence[str]) -> None:
        for judge in self.judges:
            mine = [key for key in keys if key not in self.books[judge.name].scores]
            if mine:
                found = judge.score(self._pictures(mine), [self.pending[key][0] for key in mine])
                self.books[judge.name].add(list(zip(mine, found, strict=True)))
                self.made += len(mine)

    def _encode(self, keys: Sequence[str]) -> None:
        if keys:
            for key, row in zip(keys, encode(self._pictures(keys), self.encoder), strict=True):
                self.store.add(self._place(key), {"features": row})

    def scores(self, keys: Sequence[str]) -> dict[str, tuple[float, ...]]:
        """Scores of some images by scorer."""
        return {name: tuple(book.scores[key] for key in keys) for name, book in self.books.items()}

    def features(self, keys: Sequence[str]) -> NDArray[np.float64]:
        """(n, D) features of some images."""
        rows = [self.store.get(self._place(key))["features"].double().numpy() for key in keys]
        return np.stack(rows)


def _bytes(image: ImageSource) -> bytes:
    try:
        return image.read()
    except (OSError, ValueError) as error:
        raise BadImageError(image.where, f"cannot be read ({error})") from error


def _too_many(bad: Sequence[tuple[str, str]], total: int, share: float) -> str:
    listed = "; ".join(f"{where}: {reason}" for where, reason in bad[:5])
    return (
        f"{len(bad)} of {total} images cannot be read, more than max_bad_share={share:g} allows to leave out "
        f"({listed}); repair them"
    )
