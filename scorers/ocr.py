"""How well a picture spells the text that its prompt puts in quotes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from numpy.typing import NDArray
from torch import Tensor

from scorers import catalogue
from scorers.base import ScorerBase, check_batch
from scorers.jpeg import to_bytes
from scorers.options import read_options
from scorers.registry import Registry

Line = tuple[str, float]
"""A line of recognised text and its confidence."""
CURLY = str.maketrans({mark: '"' for mark in "\u201c\u201d\u201e\u201f\u00ab\u00bb"})


class OcrEngine(Protocol):
    """What reads text: any object with this method."""

    def read(self, picture: NDArray[Any]) -> Sequence[Line]:
        """Lines of a (H, W, 3) uint8 RGB picture, in reading order."""
        ...


engines: Registry[Callable[[], OcrEngine]] = Registry("OCR engine", entry_points="ocr_engines")
"""Engines by name, from the entry-point group ``ocr_engines``, or ``package.module:Class``; made without
arguments."""


@catalogue.register("ocr")
class Ocr(ScorerBase):
    """1 - d / n, with d the edits between the n letters asked for and what is read (Flow-GRPO's reward).

    Spaces and case do not count. d is 0 where the text stands anywhere among what is read, and n at most.

    Args:
        engine: reads the pictures.
        targets: the text asked for, by prompt; prompts that are not there put it into double quotes,
            straight or curly.
    """

    name = "ocr"
    dims: tuple[str, ...] = ("spelling",)
    range = (0.0, 1.0)
    differentiable = False
    licence = "Apache-2.0 (own code; Flow-GRPO is MIT); the engine has its own"
    citation = "Liu et al., Flow-GRPO: Training Flow Matching Models via Online RL, 2025, arXiv:2505.05470"
    weights = 'a json file {"engine": "package.module:Class"}'
    size = "the engine's"

    def __init__(self, engine: OcrEngine, targets: Mapping[str, str] | None = None) -> None:
        """See the class."""
        super().__init__()
        self.engine, self.targets = engine, dict(targets or {})

    @classmethod
    def load(cls, weights: Path | None, *, device: str | torch.device, dtype: torch.dtype) -> Ocr:
        """Make the scorer from a json file that names its engine, and may hold ``targets``.

        Raises:
            FileNotFoundError: no file.
            ValueError: options that are not understood.
            RegistryError: no such engine.
        """
        options = read_options(cls.name, weights, cls.weights, required=("engine",), optional=("targets",))
        make = engines.get(str(options["engine"]))
        return cls(make(), cast("Mapping[str, str]", options.get("targets") or {}))

    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,) float32 scores of (B, 3, H, W) pictures in [0, 1]; not differentiable.

        Raises:
            ValueError: a prompt that asks for no text; wrong shapes.
        """
        check_batch(x01, prompts)
        wanted = [self.targets.get(p) or quoted(p) for p in prompts]
        found = [self.engine.read(picture.numpy()) for picture in to_bytes(x01)]
        scores = [spelling(lines, text) for lines, text in zip(found, wanted, strict=True)]
        return torch.tensor(scores, device=x01.device)


def quoted(prompt: str) -> str:
    """Text between the first pair of double quotes of a prompt.

    Raises:
        ValueError: there is no such pair, or nothing in it.
    """
    parts = prompt.translate(CURLY).split('"')
    if len(parts) < 3 or not _letters(parts[1]):
        raise ValueError(
            f"prompt {prompt!r} asks for no text: put it into double quotes, or give it as targets[prompt]"
        )
    return parts[1]


def spelling(lines: Sequence[Line], target: str) -> float:
    """Score, in [0, 1], of recognised lines for a text; lines of confidence 0 do not count.

    Raises:
        ValueError: a text without letters.
    """
    wanted = _letters(target)
    if not wanted:
        raise ValueError("the text asked for is empty, so nothing can be spelt rightly or wrongly")
    seen = _letters("".join(text for text, confidence in lines if confidence > 0))
    distance = 0 if wanted in seen else min(edit_distance(seen, wanted), len(wanted))
    return 1 - distance / len(wanted)


def edit_distance(first: str, second: str) -> int:
    """Fewest letters to insert, delete or replace that turn one text into the other (Levenshtein)."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        last, row = row, [i]
        for j, b in enumerate(second, 1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (a != b)))
    return row[-1]


def _letters(text: str) -> str:
    return text.replace(" ", "").lower()
