"""The folder of a run: where its files are, how lines of metrics are written, and how none of it is lost."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """Paths of one run."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved recipe."""
        return self.root / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        """Resume state."""
        return self.root / "checkpoints"

    @property
    def export(self) -> Path:
        """Weights for users."""
        return self.root / "export"

    @property
    def samples(self) -> Path:
        """Validation pictures."""
        return self.root / "samples"

    @property
    def metrics(self) -> Path:
        """One JSON line per step."""
        return self.root / "metrics.jsonl"

    @property
    def validation(self) -> Path:
        """One JSON line per validation that a judge decided."""
        return self.root / "validation.jsonl"

    def write_config(self, text: str, old: str = "") -> None:
        """Write the resolved recipe; one that differs is kept beside it, as config-``old``.yaml."""
        if self.config.exists() and self.config.read_text() != text:
            os.replace(self.config, _free(self.root / f"config-{old}.yaml"))
        write_text(self.config, text)

    def write_skipped(self, bad: Sequence[tuple[str, str]], equal: Sequence[str]) -> None:
        """List what was left out of the data: unreadable images with the reason, pairs of equal images."""
        if bad or equal:
            content = {"unreadable": [{"image": w, "reason": r} for w, r in bad], "equal_pairs": list(equal)}
            write_text(self.root / "skipped.json", json.dumps(content, indent=2))

    def append(self, step: int, row: Mapping[str, float], timing: Mapping[str, float]) -> None:
        """Add one step's line of metrics."""
        _append(self.metrics, _plain(step, row) | {"timing": dict(timing)})

    def append_validation(self, step: int, row: Mapping[str, float]) -> None:
        """Add what one validation found."""
        _append(self.validation, _plain(step, row))

    def forget_after(self, step: int) -> None:
        """Drop lines of steps beyond ``step``: they are made again after a resume."""
        for file in (self.metrics, self.validation):
            if file.exists():
                kept = [line for line in file.read_text().splitlines() if _step(line) <= step]
                write_text(file, "".join(f"{line}\n" for line in kept))

    def rows(self) -> list[dict[str, Any]]:
        """All lines of metrics so far."""
        return _lines(self.metrics)

    def validations(self) -> list[dict[str, Any]]:
        """What the validations found so far."""
        return _lines(self.validation)


def _plain(step: int, row: Mapping[str, float]) -> dict[str, Any]:
    """A line's content; what is not a number is null, as JSON has no NaN."""
    return {"step": step} | {k: v if math.isfinite(v) else None for k, v in row.items()}


def _append(file: Path, content: Mapping[str, Any]) -> None:
    with file.open("a") as lines:
        lines.write(json.dumps(content) + "\n")


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError):
        return math.inf  # a line cut short by a kill


def _free(path: Path) -> Path:
    """``path``, or the first of name-2, name-3, ... that is not taken."""
    found, i = path, 1
    while found.exists():
        i += 1
        found = path.with_name(f"{path.stem}-{i}{path.suffix}")
    return found


def new_run(output: str) -> RunFolder:
    """Claim a folder that no other run has: ``output``, or output-2, output-3, ... where it is taken."""
    root, i = Path(output), 1
    while (root / "config.yaml").exists():
        i += 1
        root = Path(f"{output}-{i}")
    root.mkdir(parents=True, exist_ok=True)
    return RunFolder(root=root)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)


def read_config(folder: Path) -> dict[str, Any]:
    """The resolved recipe of a run, as plain values.

    Raises:
        FileNotFoundError: ``folder`` is no run folder.
    """
    file = folder / "config.yaml"
    if not file.exists():
        raise FileNotFoundError(f"{folder} is no run folder: it has no config.yaml")
    loaded: dict[str, Any] = yaml.safe_load(file.read_text())
    return loaded
