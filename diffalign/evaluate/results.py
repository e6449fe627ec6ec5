"""``results.jsonl``: one line for each picture of a model; what evaluation writes and the gallery shows.

A folder of results is ``FOLDER/results.jsonl`` with ``FOLDER/<model>/<prompt id>/<seed>.png`` (or webp).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from diffalign.evaluate.report import write_atomic

NAME = "results.jsonl"


class ResultsError(ValueError):
    """Results that cannot be used; the message names file, line and remedy."""


class Row(BaseModel):
    """One picture."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    v: Literal[1] = 1
    prompt_id: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    """Name of the prompt in paths and votes, see ``prompt_id``."""
    prompt: str
    category: str = ""
    challenge: str = ""
    seed: int = Field(ge=0)
    model: str = Field(min_length=1)
    path: str
    """Of the picture, relative to the folder of results.jsonl, with forward slashes."""
    width: int = Field(ge=1)
    """In pixels."""
    height: int = Field(ge=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Of the picture's file."""
    scores: dict[str, float] = Field(default_factory=dict)
    """By scorer, higher is better."""


def prompt_id(prompt: str) -> str:
    """Name of a prompt that stays the same wherever it stands: 12 hex digits of its sha256."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:12]


def read_rows(folder: Path) -> list[Row]:
    """Rows of one folder of results, or of the results.jsonl itself, in the file's order.

    Raises:
        ResultsError: no such file, a line that is no row, or a path that leaves the folder.
    """
    file = folder if folder.suffix == ".jsonl" else folder / NAME
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ResultsError(
            f"{file} cannot be read ({error.strerror}): name a folder that `diffalign evaluate` wrote"
        ) from error
    return [_row(line, f"{file}:{n}") for n, line in enumerate(lines, 1) if line.strip()]


def write_rows(folder: Path, rows: Iterable[Row]) -> Path:
    """Write results.jsonl whole, replacing an older one."""
    text = "".join(json.dumps(row.model_dump(), ensure_ascii=False) + "\n" for row in rows)
    return write_atomic(folder / NAME, text)


def models_of(rows: Sequence[Row]) -> list[str]:
    """Models in the order of their first row; the first is the base."""
    return list(dict.fromkeys(row.model for row in rows))


def _row(line: str, where: str) -> Row:
    try:
        row = Row.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the line"
        raise ResultsError(
            f"{where}: {field}: {first['msg']}; the file is damaged or of another version"
        ) from error
    if row.path.startswith("/") or ".." in Path(row.path).parts:
        raise ResultsError(f"{where}: path {row.path!r} leads out of the folder of results")
    return row
