"""The one internal form of a preference: a prompt, its images, and what somebody thought of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from diffalign.data.sources import (
    BytesImage,
    DataError,
    FileImage,
    ImageSource,
    ParquetImage,
    TarImage,
    parquet,
)

if TYPE_CHECKING:
    from diffalign.data.region import Region

__all__ = [
    "BytesImage",
    "DataError",
    "FileImage",
    "ImageSource",
    "Kind",
    "ParquetImage",
    "Record",
    "TarImage",
    "parquet",
]

Kind = Literal["pair", "labels", "ranking"]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One comparison: what every reader gives and every objective is fed from.

    Raises:
        DataError: on construction, where the fields do not fit together.
    """

    prompt: str
    """Caption of all images; may be empty, not missing."""
    images: tuple[ImageSource, ...]
    kind: Kind
    values: tuple[float, ...]
    """pair: (p0, p1), probabilities that each image wins, p0 + p1 = 1, .5/.5 a tie. labels: per image
    1 liked, 0 disliked, .5 unknown. ranking: a score per image, higher is better."""
    prompts: tuple[str, ...] | None = None
    """Own caption of each image, where they differ."""
    rater: str | None = None
    """Who judged."""
    models: tuple[str, ...] = ()
    """What made each image, where known."""
    source: str = ""
    """File and row."""
    margin: float | None = None
    """Margin that the objective asks of a pair; None is none asked."""
    weight: float = 1.0
    """Weight of the comparison in the loss, 0 or more."""
    soft: tuple[float, float] | None = None
    """Of a pair: probability that each image wins, in place of ``values`` in the loss; which image counts as
    the winner stays with ``values``."""
    score: tuple[float, ...] | None = None
    """Label score of each image for objectives that use one (CaPO's calibrated reward); of a ranking
    ``values`` are its scores."""
    judged: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Score of each image by the name of its scorer, and labels derived of them; ``data.select`` picks."""
    distance: float | None = None
    """How far apart the two images of a pair are in feature space, 0 or more."""
    regions: tuple[Region | None, ...] | None = None
    """Of each image: where it counts and how much; None counts everywhere alike."""

    def __post_init__(self) -> None:
        """Check the fields."""
        where = self.source or "record"
        if not isinstance(self.prompt, str):
            raise DataError(f"{where}: the caption is missing; give a text (an empty one is allowed)")
        least = {"pair": 2, "labels": 1, "ranking": 2}.get(self.kind)
        if least is None:
            raise DataError(f"{where}: kind is {self.kind!r}; it must be pair, labels or ranking")
        count = len(self.images)
        if count < least or (self.kind == "pair" and count != 2):
            raise DataError(
                f"{where}: a {self.kind} needs {least} images{'' if least == 2 else ' or more'}, got {count}"
            )
        for name, length in self._lengths():
            if length != count:
                raise DataError(
                    f"{where}: {count} images but {length} {name}; there must be one for each image"
                )
        self._check_values(where)
        self._check_extras(where)

    def _lengths(self) -> list[tuple[str, int]]:
        given: dict[str, Sequence[Any] | None] = {
            "values": self.values, "prompts": self.prompts or None, "models": self.models or None,
            "score": self.score, "soft": self.soft, "regions": self.regions,
            **{f"judged.{name}": row for name, row in self.judged.items()},
        }  # fmt: skip
        return [(name, len(row)) for name, row in given.items() if row is not None]

    def _check_values(self, where: str) -> None:
        if not all(math.isfinite(v) for v in self.values):
            raise DataError(f"{where}: values {self.values} are not all finite numbers")
        if self.kind == "pair" and (min(self.values) < 0 or abs(sum(self.values) - 1) > 1e-6):
            raise DataError(
                f"{where}: the values of a pair are {self.values}; they must be in [0, 1] and add up to 1"
            )
        if self.kind == "labels" and not set(self.values) <= {0.0, 0.5, 1.0}:
            raise DataError(
                f"{where}: labels are {self.values}; each must be 1 (liked), 0 (disliked) or 0.5 (unknown)"
            )

    def _check_extras(self, where: str) -> None:
        """Check the optional numbers."""
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise DataError(f"{where}: weight is {self.weight}; it must be 0 or more")
        if self.kind != "pair":
            pair_only = {"margin": self.margin, "soft": self.soft, "distance": self.distance}
            for name, value in pair_only.items():
                if value is not None:
                    raise DataError(f"{where}: {name} is for pairs, and this is a {self.kind} record")
        if self.kind == "ranking" and self.score is not None:
            raise DataError(f"{where}: the scores of a ranking are its values; leave score out")
        if self.margin is not None and not math.isfinite(self.margin):
            raise DataError(f"{where}: margin is {self.margin}; it must be a finite number")
        if self.distance is not None and not (math.isfinite(self.distance) and self.distance >= 0):
            raise DataError(f"{where}: distance is {self.distance}; it must be 0 or more")
        if self.soft is not None and not (min(self.soft) >= 0 and abs(sum(self.soft) - 1) <= 1e-6):
            raise DataError(f"{where}: soft is {self.soft}; it must be in [0, 1] and add up to 1")
        rows = {"score": self.score or (), **{f"judged.{n}": row for n, row in self.judged.items()}}
        for name, row in rows.items():
            if not all(math.isfinite(v) for v in row):
                raise DataError(f"{where}: {name} {row} are not all finite numbers")

    @property
    def undecided(self) -> bool:
        """Whether it prefers nothing: a tied pair, unknown labels only, a ranking of equals."""
        return self.values[0] == 0.5 if self.kind == "pair" else self._flat()

    def _flat(self) -> bool:
        return set(self.values) == {0.5} if self.kind == "labels" else len(set(self.values)) == 1

    def prompt_of(self, image: int) -> str:
        """Caption of one image."""
        return self.prompt if self.prompts is None else self.prompts[image]

    @property
    def gap(self) -> float:
        """How clear the comparison is: best minus worst ``score``, else ``soft``, else ``values``."""
        row = self.score or self.soft or self.values
        return max(row) - min(row)

    @property
    def winner(self) -> int:
        """Position of the first image with the highest value; of a tie the first image."""
        return self.values.index(max(self.values))

    def only(self, images: Sequence[int], kind: Kind, values: Sequence[float]) -> Record:
        """Keep some of the images, judged anew; what belongs to a whole pair goes unless it stays one.

        Args:
            images: positions of the images, in their new order.
            kind: kind of the new record.
            values: one for each of ``images``.
        """
        same = kind == self.kind == "pair"
        return replace(
            self,
            images=tuple(self.images[i] for i in images),
            kind=kind,
            values=tuple(values),
            prompts=_picked(self.prompts, images),
            models=_picked(self.models, images) or (),
            margin=self.margin if same else None,
            soft=(self.soft[images[0]], self.soft[images[1]]) if same and self.soft else None,
            score=None if kind == "ranking" else _picked(self.score, images),
            judged={name: tuple(row[i] for i in images) for name, row in self.judged.items()},
            distance=self.distance if same else None,
            regions=_picked(self.regions, images),
        )


def _picked(row: tuple[T, ...] | None, places: Sequence[int]) -> tuple[T, ...] | None:
    return tuple(row[i] for i in places) if row else None
