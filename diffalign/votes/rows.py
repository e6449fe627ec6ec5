"""A vote: one flat line of JSON, as the gallery exports it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Choice = Literal["a", "b", "tie", "both_bad", "skip"]


class VoteError(ValueError):
    """Votes that cannot be used; the message names file, line and remedy."""


class Shown(BaseModel):
    """One side of a vote: which model's picture."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(min_length=1, max_length=200)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Of the picture's file."""


class Vote(BaseModel):
    """One answer of one rater on one pair of pictures of the same prompt and seed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    v: Literal[1] = 1
    gallery: str = Field(pattern=r"^[0-9a-f]{64}$")
    """sha256 that names the gallery: of its sorted lines ``model<TAB>prompt_id<TAB>seed<TAB>sha256``."""
    rater: str = Field(min_length=1, max_length=100)
    time: datetime
    """When, with its zone."""
    ms: int = Field(ge=0)
    """Milliseconds from showing to answer."""
    prompt_id: str = Field(max_length=200)
    prompt: str = Field(max_length=20_000)
    seed: int = Field(ge=0)
    a: Shown
    b: Shown
    left: Literal["a", "b"]
    """Which side was on the left."""
    choice: Choice
    aspect: str = Field(default="overall", max_length=100)
    repeat_of: datetime | None = None
    """Of a repeat with sides swapped: the time of this rater's vote that it repeats."""
    anchor: Literal["a", "b"] | None = None
    """Of an attention check, whose sides are one picture with one of them degraded by the page: the side left
    as it is."""
    note: str = Field(default="", max_length=2000)
    broken: bool = False
    """The rater flagged a picture as broken."""


def gallery_id(shown: Iterable[tuple[str, str, int, str]]) -> str:
    """Name of the gallery that shows these pictures, see ``Vote.gallery``.

    Args:
        shown: model, prompt id, seed and sha256 of each picture, in any order; one that several folders share
            counts once.
    """
    lines = sorted({"\t".join(map(str, one)) + "\n" for one in shown})
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_votes(paths: Iterable[Path]) -> list[Vote]:
    """Votes of JSON Lines files, in order; a vote that comes again (the same file merged twice) counts once.

    Raises:
        VoteError: a file that cannot be read, or a line that is no vote.
    """
    votes = [vote for path in paths for vote in _read(path)]
    return list({vote.model_dump_json(): vote for vote in votes}.values())


def to_lines(votes: Sequence[Vote]) -> str:
    """JSON Lines text of votes."""
    return "".join(vote.model_dump_json() + "\n" for vote in votes)


def parse_vote(line: str | bytes, where: str) -> Vote:
    """A vote of one line of JSON.

    Raises:
        VoteError: it is no vote; names ``where`` and the field.
    """
    try:
        return Vote.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the line"
        raise VoteError(
            f"{where}: {field}: {first['msg']}; export the votes again from their gallery"
        ) from error


def _read(path: Path) -> list[Vote]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise VoteError(f"{path} cannot be read as text ({error}): name a .jsonl of votes") from error
    return [parse_vote(line, f"{path}:{n}") for n, line in enumerate(lines, 1) if line.strip()]
