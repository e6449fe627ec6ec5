"""TIAM: are all objects of a prompt detected, and do they have the colours that it gives them?"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from scorers import catalogue
from scorers.base import ScorerBase, check_batch
from scorers.colours import BERLIN_KAY, colour_shares
from scorers.detect import Detection, Detector, check_known, load_detector
from scorers.options import check_options, folder_of, read_options

CONFIDENCE = 0.25
COLOUR_SHARE = 0.4
"""Share of an object's pixels that must be nearest to the colour asked for."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Objects that a prompt names, in its order."""

    labels: tuple[str, ...]
    colours: tuple[str | None, ...] = ()
    """Colour of each, or nothing where the prompt gives none."""

    def __post_init__(self) -> None:
        """Check the lengths.

        Raises:
            ValueError: no object, or not one colour (or None) for each.
        """
        if not self.labels or (self.colours and len(self.colours) != len(self.labels)):
            raise ValueError(
                f"{self.labels} with colours {self.colours}: give an object, and a colour of each"
            )


@dataclass(frozen=True, kw_only=True)
class Presence:
    """Which objects are there."""

    complete: bool
    """Every different one was detected."""
    kinds: int
    """How many different ones were."""
    order: tuple[int, ...]
    """Of each object in the prompt's order 1 if it was detected, for the order statistic."""


def presence(labels: Sequence[str], seen: Sequence[str]) -> Presence:
    """Compare labels of a prompt with labels detected; how many there are of one does not matter."""
    order = tuple(int(label in seen) for label in labels)
    kinds = len(set(labels) & set(seen))
    return Presence(complete=kinds == len(set(labels)), kinds=kinds, order=order)


def bound(
    wanted: Sequence[tuple[str, str]],
    seen: Sequence[tuple[str, Mapping[str, float]]],
    least: float = COLOUR_SHARE,
) -> list[int | None]:
    """Of each (label, colour) whether an object with the label has the colour: 1, 0, None if none is there.

    ``seen`` are labels of objects with the share of their pixels by colour.
    """
    found = []
    for label, colour in wanted:
        shares = [by_colour.get(colour, 0.0) for name, by_colour in seen if name == label]
        found.append(int(max(shares) >= least) if shares else None)
    return found


@catalogue.register("tiam")
class Tiam(ScorerBase):
    """1 where every object of the prompt is detected, in its colour where it has one, else 0.

    ``detected`` leaves colours aside; ``kinds`` counts the different objects that are there.

    Args:
        detector: finds objects, with masks where colours are asked for.
        asked: what a prompt names; raises ValueError for prompts that it does not know.
        anchors: Lab of each colour.
        confidence: least confidence of an object.
        colour_share: least share of its pixels in the right colour.
    """

    name = "tiam"
    dims = ("bound", "detected", "kinds")
    range = (0.0, 1.0)
    differentiable = False
    licence = "Apache-2.0 (own code; TIAMv2 states no licence); the detector has its own"
    citation = "Grimal et al., TIAM: A Metric for Evaluating Alignment, WACV 2024, arXiv:2307.05134"
    weights = 'a json file {"detector": "package.module:Class", "prompts": "prompts.jsonl"}'
    size = "the detector's"

    def __init__(
        self,
        detector: Detector,
        asked: Callable[[str], Asked],
        anchors: Mapping[str, tuple[float, float, float]] = BERLIN_KAY,
        *,
        confidence: float = CONFIDENCE,
        colour_share: float = COLOUR_SHARE,
    ) -> None:
        """See the class."""
        super().__init__()
        self.detector, self.asked, self.anchors = detector, asked, dict(anchors)
        self.confidence, self.colour_share = confidence, colour_share

    @classmethod
    def load(cls, weights: Path | None, *, device: str | torch.device, dtype: torch.dtype) -> Tiam:
        """Make the scorer from a json file: ``detector``, perhaps its ``weights``, and ``prompts``.

        ``rename``: labels of the detector by what the prompts call them.

        Raises:
            FileNotFoundError: no such file.
            ValueError: options or prompts that are not understood.
            RegistryError: no such detector.
        """
        options = read_options(
            cls.name, weights, cls.weights, required=("detector", "prompts"), optional=("weights", "rename")
        )
        home = folder_of(weights)
        return cls(load_detector(options, home, device, dtype), read_asked(home / options["prompts"]))

    def score_dims(self, x01: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """See ScorerBase.

        Raises:
            ValueError: wrong shapes, an unknown prompt, objects or colours that are not known, no masks.
        """
        check_batch(x01, prompts)
        asked = [self._checked(prompt) for prompt in prompts]
        rows = zip(x01, self.detector.detect(x01), asked, strict=True)
        table = torch.tensor([self._row(*row) for row in rows], device=x01.device).reshape(-1, 3)
        return dict(zip(self.dims, table.unbind(1), strict=True))

    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,) float32, 1 or 0, of (B, 3, H, W) pictures in [0, 1]; raises as ``score_dims`` does."""
        return self.score_dims(x01, prompts)["bound"]

    def _checked(self, prompt: str) -> Asked:
        found = self.asked(prompt)
        check_known(self.detector, found.labels, f"prompt {prompt!r}")
        unknown = sorted({c for c in found.colours if c is not None} - set(self.anchors))
        if unknown:
            raise ValueError(f"prompt {prompt!r}: no anchor of {', '.join(unknown)}; give it in anchors")
        return found

    def _row(self, picture: Tensor, found: Sequence[Detection], asked: Asked) -> tuple[float, float, float]:
        sure = [d for d in found if d.confidence >= self.confidence]
        there = presence(asked.labels, [d.label for d in sure])
        pairs = zip(asked.labels, asked.colours, strict=False)
        wanted = [(label, colour) for label, colour in pairs if colour is not None]
        right = there.complete and self._bound(picture, sure, wanted)
        return float(right), float(there.complete), float(there.kinds)

    def _bound(self, picture: Tensor, sure: Sequence[Detection], wanted: Sequence[tuple[str, str]]) -> bool:
        labels = {label for label, _ in wanted}
        seen = [(d.label, self._shares(picture, d)) for d in sure if d.label in labels]
        return all(mark == 1 for mark in bound(wanted, seen, self.colour_share))

    def _shares(self, picture: Tensor, found: Detection) -> dict[str, float]:
        if found.mask is None:
            raise ValueError("colours are measured inside masks, and the detector gives boxes only")
        return colour_shares(picture, found.mask.to(picture.device), self.anchors)


def read_asked(path: Path) -> Callable[[str], Asked]:
    """What prompts name, by a jsonl file of ``{"prompt": ..., "labels": [...], "colours": [...]}``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that is not understood.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; it must hold a line with prompt and labels per prompt")
    known = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        where = f"{path} line {number}"
        try:
            row = check_options(where, json.loads(line), ("prompt", "labels"), ("colours",))
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(f"{where}: not a json object ({error})") from error
        known[row["prompt"]] = Asked(labels=tuple(row["labels"]), colours=tuple(row.get("colours", ())))

    def asked(prompt: str) -> Asked:
        if prompt not in known:
            raise ValueError(f"{path} does not say what prompt {prompt!r} names; add a line")
        return known[prompt]

    return asked


def summary(scores: Tensor) -> dict[str, float | list[float]]:
    """TIAM of (P, S) scores of P prompts with S seeds: the mean of all, and by seed and by prompt.

    Raises:
        ValueError: another shape.
    """
    if scores.ndim != 2 or 0 in scores.shape:
        raise ValueError(f"scores are {tuple(scores.shape)}; they must be (prompts, seeds)")
    x = scores.double()
    return {
        "tiam": float(x.mean()),
        "per_seed": [float(v) for v in x.mean(0)],
        "per_prompt": [float(v) for v in x.mean(1)],
    }
