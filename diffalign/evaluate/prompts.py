"""Prompt files for evaluation, and the split that keeps choosing a checkpoint apart from reporting on it."""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

logger = logging.getLogger(__name__)

SELECT_SHARE = 0.3
"""Share of prompts on which checkpoints are chosen; the rest are for the report."""
SUFFIXES = (".txt", ".jsonl", ".csv", ".tsv")

Part = Literal["select", "report"]


class PromptFileError(ValueError):
    """A prompt file that cannot be read; the message names the file, the line and the remedy."""


@dataclass(frozen=True, kw_only=True)
class EvalPrompt:
    """One prompt with the tags that prompt sets such as PartiPrompts carry."""

    prompt: str
    category: str = ""
    challenge: str = ""


def read_prompts(path: str | Path) -> list[EvalPrompt]:
    """Read a prompt file.

    ``.txt`` has one prompt per line. ``.jsonl``, ``.csv`` and ``.tsv`` have a ``prompt`` column and may have
    ``category`` and ``challenge``, in any case and order; other columns are ignored. Blank lines are skipped.
    A prompt that comes again is left out with a warning, because a prompt is the unit of every interval.

    Raises:
        PromptFileError: no such file, another suffix, no prompts, no prompt column, or a row that is broken.
    """
    path = Path(path)
    text = _read_text(path)
    rows = {".txt": _lines, ".jsonl": _json_rows}.get(path.suffix.lower(), _table_rows)(path, text)
    found = [_prompt(row, where) for where, row in rows]
    first: dict[str, EvalPrompt] = {}
    for prompt in found:
        first.setdefault(prompt.prompt, prompt)
    kept = list(first.values())
    if not kept:
        raise PromptFileError(f"{path} holds no prompts: write one per line")
    if len(kept) < len(found):
        logger.warning("%s: left out %d prompts that come more than once", path, len(found) - len(kept))
    return kept


def part_of(prompt: str, select_share: float = SELECT_SHARE) -> Part:
    """Say to which part a prompt belongs, by a hash of its text: the same in every file and for ever."""
    # The salt keeps this split independent of other splits by hash, such as that of the shapes world.
    digest = hashlib.sha256(b"diffalign evaluation split\n" + prompt.strip().encode()).digest()
    return "select" if int.from_bytes(digest[:8], "big") < select_share * 2**64 else "report"


def split_prompts(
    prompts: Iterable[EvalPrompt], select_share: float = SELECT_SHARE
) -> tuple[list[EvalPrompt], list[EvalPrompt]]:
    """Return the prompts to select a checkpoint on and those to report on, each in the given order.

    Raises:
        ValueError: ``select_share`` is outside [0, 1].
    """
    if not 0 <= select_share <= 1:
        raise ValueError(f"select_share is {select_share}: it must be between 0 and 1")
    parts: dict[Part, list[EvalPrompt]] = {"select": [], "report": []}
    for prompt in prompts:
        parts[part_of(prompt.prompt, select_share)].append(prompt)
    return parts["select"], parts["report"]


def _read_text(path: Path) -> str:
    if path.suffix.lower() not in SUFFIXES:
        raise PromptFileError(
            f"{path}: prompt files end in {', '.join(SUFFIXES)}, not in {path.suffix or 'nothing'!r}"
        )
    if not path.is_file():
        raise PromptFileError(f"{path} is not a file: check the path (relative paths start at {Path.cwd()})")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptFileError(f"{path} is not UTF-8 at byte {error.start}: save it as UTF-8") from error


Rows = Iterator[tuple[str, Mapping[str, object]]]
"""Where a row stands, and its columns by lower-case name."""


def _lines(path: Path, text: str) -> Rows:
    return (
        (f"{path} line {n}", {"prompt": line}) for n, line in enumerate(text.split("\n"), 1) if line.strip()
    )


def _json_rows(path: Path, text: str) -> Rows:
    for n, line in enumerate(text.split("\n"), 1):  # not splitlines(): U+2028 is allowed inside a JSON string
        if not line.strip():
            continue
        where = f"{path} line {n}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise PromptFileError(f"{where} is not JSON ({error.msg} at column {error.colno})") from error
        if not isinstance(row, dict):
            raise PromptFileError(f'{where} is not an object: write {{"prompt": "..."}}')
        row = {key.lower(): value for key, value in row.items()}
        _require_prompt_column(where, list(row))
        yield where, row


def _table_rows(path: Path, text: str) -> Rows:
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter="\t" if path.suffix.lower() == ".tsv" else ","
    )
    names = [name.strip().lower() for name in next(reader, [])]
    _require_prompt_column(f"the header of {path}", names)
    for row in reader:
        where = f"{path} line {reader.line_num}"
        if not any(cell.strip() for cell in row):
            continue
        if len(row) > len(names):
            remedy = "a prompt with the separator in it needs quotes"
            raise PromptFileError(f"{where} has {len(row)} columns, the header {len(names)}: {remedy}")
        yield where, dict(zip(names, row, strict=False))


def _require_prompt_column(where: str, names: Sequence[str]) -> None:
    if "prompt" in names:
        return
    near = difflib.get_close_matches("prompt", names, n=1) or [n for n in names if n in ("caption", "text")]
    hint = f"; rename {near[0]!r}" if near else ""
    raise PromptFileError(
        f"{where} has no column 'prompt', only {', '.join(map(repr, names)) or 'nothing'}{hint}"
    )


def _prompt(row: Mapping[str, object], where: str) -> EvalPrompt:
    cells = {name: row.get(name) for name in ("prompt", "category", "challenge")}
    for name, value in cells.items():
        if value is not None and not isinstance(value, str):
            raise PromptFileError(f"{where}: {name} is {value!r}, expected text in quotes")
    prompt, category, challenge = (str(value or "").strip() for value in cells.values())
    if not prompt:
        raise PromptFileError(f"{where}: the prompt is empty")
    return EvalPrompt(prompt=prompt, category=category, challenge=challenge)
