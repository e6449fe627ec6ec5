"""The oracle as a detector, so that GenEval and TIAM run on pictures of the shapes world.

Registered through the entry-point groups ``detectors`` (``shapes``) and ``scorers`` (``shapes-geneval``,
``shapes-tiam``, which know what the prompts of the grammar ask for).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from diffalign.world.grammar import COLOURS, HUES, SHAPES, Prompt, parse
from diffalign.world.oracle import measure, object_masks
from diffalign.world.shapes import hsv_to_rgb
from scorers.colours import srgb_to_lab
from scorers.detect import Detection, box_of
from scorers.geneval import GenEval
from scorers.tasks import Include, Task
from scorers.tiam import Asked, Tiam

OVERLAP = 0.8
"""Confidence from which an object counts: its overlap with the best template, as the oracle has it."""


class ShapesDetector:
    """Finds at most two shapes in a 64 x 64 picture, the two largest, with masks and colours.

    The confidence is the overlap with the template of the shape, so 0.8 to 1.
    """

    labels: Sequence[str] = SHAPES

    @classmethod
    def load(cls, weights: Path | None, *, device: str | torch.device, dtype: torch.dtype) -> ShapesDetector:
        """Make the detector; it has no weights and works on the CPU."""
        return cls()

    def detect(self, x01: Tensor) -> list[list[Detection]]:
        """See scorers.detect.Detector; raises ValueError for pictures of another size."""
        x = x01.detach().float().cpu()
        found, masks = measure(x), object_masks(x)
        return [
            [
                _detection(masks[i, k], SHAPES[shape], int(found.colour[i, k]), float(found.overlap[i, k]))
                for k, shape in enumerate(found.shape[i].tolist())
                if shape >= 0
            ]
            for i in range(len(x))
        ]


def _detection(mask: Tensor, label: str, colour: int, confidence: float) -> Detection:
    # -1 is a colour without a name: no colour that can be asked for.
    name = COLOURS[colour] if colour >= 0 else "none"
    return Detection(label=label, box=box_of(mask), confidence=min(1.0, confidence), mask=mask, colour=name)


def geneval_task(text: str) -> Task:
    """What a sentence of the shapes world asks for, as GenEval writes it (size and background aside).

    The object that is named first lies on that side of the second, so the relation is the first's.

    Raises:
        ValueError: the sentence is none of the shapes world.
    """
    prompt = parse(text)
    if prompt.relation is None:
        (label,), (colour,) = prompt.shapes, prompt.colours
        return Task(
            tag="color",
            include=(Include(label=label, colour=colour),),
            exclude=((label, 2), *_others(prompt)),
        )
    tag = "position_same" if len(set(prompt.shapes)) == 1 else "position"
    return Task(tag=tag, include=_two(prompt), exclude=_others(prompt))


def _two(prompt: Prompt) -> tuple[Include, ...]:
    """Demands of a prompt of two objects; GenEval's form cannot tell two objects of one shape apart."""
    (first, second), (one, two) = prompt.shapes, prompt.colours
    if first == second:
        return (Include(label=first, count=2),)
    position = (prompt.relation or "", 0)
    return (
        Include(label=second, colour=two),
        Include(label=first, colour=one, position=position),
    )


def _others(prompt: Prompt) -> tuple[tuple[str, int], ...]:
    return tuple((shape, 1) for shape in SHAPES if shape not in prompt.shapes)


def tiam_asked(text: str) -> Asked:
    """What a sentence of the shapes world names.

    Raises:
        ValueError: the sentence is none of the shapes world.
    """
    prompt = parse(text)
    return Asked(labels=prompt.shapes, colours=prompt.colours)


def shape_anchors() -> dict[str, tuple[float, float, float]]:
    """Lab of the world's colours at their mean saturation and shade, in place of TIAM's, which lack cyan."""
    hsv = torch.tensor([[hue, 0.8, 0.775] for hue in HUES.values()])
    rows = srgb_to_lab(hsv_to_rgb(hsv)).tolist()
    return {name: (row[0], row[1], row[2]) for name, row in zip(HUES, rows, strict=True)}


class GenEvalLoader:
    """What the registry of scorers holds for ``shapes-geneval``."""

    about = GenEval
    weights = ""

    def load(self, weights: Path | None, *, device: str | torch.device, dtype: torch.dtype) -> GenEval:
        """Make the scorer; weights, device and dtype do not matter."""
        scorer = GenEval(ShapesDetector(), geneval_task, threshold=OVERLAP - 1e-6)
        scorer.name = "shapes-geneval"
        return scorer


class TiamLoader:
    """What the registry of scorers holds for ``shapes-tiam``."""

    about = Tiam
    weights = ""

    def load(self, weights: Path | None, *, device: str | torch.device, dtype: torch.dtype) -> Tiam:
        """Make the scorer; weights, device and dtype do not matter."""
        scorer = Tiam(ShapesDetector(), tiam_asked, shape_anchors())
        scorer.name = "shapes-tiam"
        return scorer


geneval = GenEvalLoader()
tiam = TiamLoader()
