"""Prompt files for evaluation, and the split that keeps choosing a checkpoint apart from reporting on it."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diffalign.evaluate.prompt_files import PromptFileError, read_rows
from diffalign.evaluate.report import write_atomic

__all__ = ["EvalPrompt", "Part", "PromptFileError", "part_of", "read_prompts", "split_prompts", "write_tasks"]

logger = logging.getLogger(__name__)

SELECT_SHARE = 0.3
"""Share of prompts on which checkpoints are chosen; the rest are for the report."""

Part = Literal["select", "report"]


@dataclass(frozen=True, kw_only=True)
class EvalPrompt:
    """One prompt with the tags that prompt sets such as PartiPrompts carry."""

    prompt: str
    category: str = ""
    challenge: str = ""
    task: str = ""
    """GenEval's metadata as JSON (tag, include, exclude), which its detector compares pictures with."""


def read_prompts(path: str | Path) -> list[EvalPrompt]:
    """Read a prompt file.

    ``.txt`` has one prompt per line. ``.jsonl``, ``.csv``, ``.tsv`` and ``.parquet`` have a ``prompt`` column
    and may have ``category`` and ``challenge``, in any case and order; other columns are ignored. So
    PartiPrompts' tsv, DrawBench's csv and GenEval's jsonl (whose tags become categories) are read as they
    are. ``.json`` holds a list of prompts, or lists by category, and a folder of them is HPSv2's benchmark.
    Blank lines are skipped. A prompt that comes again is left out with a warning, because a prompt is the
    unit of every interval.

    Raises:
        PromptFileError: no such file, another suffix, no prompts, no prompt column, or a row that is broken.
    """
    path = Path(path)
    found = [_prompt(row, where) for where, row in read_rows(path)]
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


def _prompt(row: Mapping[str, object], where: str) -> EvalPrompt:
    cells = {name: row.get(name) for name in ("prompt", "category", "challenge")}
    for name, value in cells.items():
        if value is not None and not isinstance(value, str):
            raise PromptFileError(f"{where}: {name} is {value!r}, expected text in quotes")
    prompt, category, challenge = (str(value or "").strip() for value in cells.values())
    if not prompt:
        raise PromptFileError(f"{where}: the prompt is empty")
    task = {key: row[key] for key in ("tag", "include", "exclude") if key in row}
    return EvalPrompt(
        prompt=prompt,
        category=category,
        challenge=challenge,
        task=json.dumps(task) if {"tag", "include"} <= set(task) else "",
    )


def write_tasks(path: Path, prompts: Sequence[EvalPrompt]) -> Path | None:
    """Write GenEval's metadata of the prompts that have it, as the scorer ``geneval`` reads it."""
    rows = [json.loads(p.task) | {"prompt": p.prompt} for p in prompts if p.task]
    return write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows)) if rows else None
