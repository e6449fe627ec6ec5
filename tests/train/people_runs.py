"""Tiny runs with directions and with weighed groups; also as processes of their own.

python -m tests.train.people_runs FOLDER OUTPUT
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffalign.data.records import Record
from diffalign.train.align import align
from tests.train.runs import recipe, records

ENCODER = {"name": "direction", "scorers": ["dark", "large"], "tokens": 4, "width": 24, "hidden": 8}
RATES = {"encoder_rate": 0.02, "branch_rate": 0.02}
DIRECTED = {"encoder": ENCODER, **RATES}
ROBUST = {"encoder": {"name": "table", "tokens": 4, "width": 24}, "robust": {"step": 0.5}, **RATES}


def scored(n: int = 8) -> list[Record]:
    """By dark the first of each pair wins, by large the second; nobody is named."""
    scores = [{"dark": (1.0 + i, 0.0), "large": (0.0, 2.0 + i)} for i in range(n)]
    return [replace(r, judged=judged) for r, judged in zip(records(n), scores, strict=True)]


def named(n: int = 8) -> list[Record]:
    """Ben has judged every fourth pair, and anna the others."""
    return [replace(r, rater="anna" if i % 4 else "ben") for i, r in enumerate(records(n))]


def directed(folder: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """Recipe with directions."""
    return recipe("sd", folder, output) | {"people": DIRECTED} | changes


def robust(folder: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """Recipe with weighed people."""
    return recipe("sd", folder, output) | {"people": ROBUST} | changes


def both(folder: Path, output: Path) -> None:
    """One run of each kind; the cache belongs to ``output``."""
    few: dict[str, Any] = {"steps": 3, "ema": 0, "checkpoint_every": 0}
    for name, make, data in (("directed", directed, scored()), ("robust", robust, named())):
        options = make(folder, output / name, **few)
        options["data"] |= {"cache": str(output / "cache")}
        align(options, records=data)


if __name__ == "__main__":
    both(Path(sys.argv[1]), Path(sys.argv[2]))
