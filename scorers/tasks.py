"""What GenEval's prompts ask for, and the file that says so."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scorers.options import check_options

RELATIONS = ("left of", "right of", "above", "below")


@dataclass(frozen=True, kw_only=True)
class Include:
    """Objects that must be there."""

    label: str
    count: int = 1
    colour: str | None = None
    position: tuple[str, int] | None = None
    """Relation to the objects of an earlier ``Include``, by its number from 0."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a prompt asks for."""

    tag: str
    include: tuple[Include, ...] = ()
    exclude: tuple[tuple[str, int], ...] = ()
    """Labels, and the number of objects that is too many."""

    def __post_init__(self) -> None:
        """Check relations.

        Raises:
            ValueError: an unknown relation, or one to objects that are not named before.
        """
        for i, item in enumerate(self.include):
            if item.position is not None:
                relation, target = item.position
                if relation not in RELATIONS or not 0 <= target < i:
                    raise ValueError(
                        f"position {item.position} of object {i}: it must be one of {', '.join(RELATIONS)} "
                        f"and the number of an object before it"
                    )

    @classmethod
    def of(cls, metadata: Mapping[str, Any], where: str = "metadata") -> Task:
        """Read a line of GenEval's evaluation_metadata.jsonl.

        Raises:
            ValueError: fields that are missing or unknown.
        """
        row = check_options(where, dict(metadata), ("tag", "include"), ("exclude", "prompt"))
        keys = ("color", "position")
        wanted = [check_options(where, dict(r), ("class", "count"), keys) for r in row["include"]]
        unwanted = [check_options(where, dict(r), ("class", "count")) for r in row.get("exclude", [])]
        return cls(
            tag=row["tag"],
            include=tuple(
                Include(
                    label=r["class"], count=r["count"], colour=r.get("color"),
                    position=tuple(r["position"]) if "position" in r else None,
                ) for r in wanted
            ),
            exclude=tuple((r["class"], r["count"]) for r in unwanted),
        )  # fmt: skip

    @property
    def labels(self) -> list[str]:
        """Every kind of object that is named."""
        return [i.label for i in self.include] + [label for label, _ in self.exclude]


def read_tasks(path: Path) -> Callable[[str], Task]:
    """What prompts ask for, by a jsonl file of GenEval's metadata.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that is no task, or a prompt twice with different ones.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; it must hold a line of GenEval's metadata per prompt")
    known: dict[str, Task] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        where = f"{path} line {number}"
        try:
            row = {**json.loads(line)}
            task = Task.of(row, where)
        except (json.JSONDecodeError, TypeError, AttributeError) as error:
            raise ValueError(f"{where}: no task of GenEval ({error})") from error
        if known.setdefault(row.get("prompt", ""), task) != task:
            raise ValueError(f"{where}: prompt {row.get('prompt')!r} has another task above")

    def tasks(prompt: str) -> Task:
        if prompt not in known:
            raise ValueError(f"{path} does not say what prompt {prompt!r} asks for; add a line")
        return known[prompt]

    return tasks
