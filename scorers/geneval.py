"""GenEval: does a picture show the objects, counts, colours and places that its prompt asks for?"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

import scorers
from scorers import catalogue
from scorers.base import ScorerBase, check_batch
from scorers.detect import (
    ColourNamer,
    Detection,
    Detector,
    check_known,
    load_detector,
    own_colours,
    zero_shot,
)
from scorers.options import check_options, folder_of, read_options
from scorers.tasks import RELATIONS, Include, Task, read_tasks

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9
MOST = 16
"""Objects of a kind that count, the surest ones."""
MARGIN = 0.1
"""Share of both objects' sizes that does not count towards their offset."""

Found = Mapping[str, Sequence[Detection]]
"""Objects by label, the surest first."""


@dataclass(kw_only=True)
class Verdict:
    """What came out for one picture."""

    correct: bool = True
    reasons: list[str] = field(default_factory=list)
    met: list[bool] = field(default_factory=list)
    """Of each demand whether it is met."""

    @property
    def share(self) -> float:
        """Share of the demands that are met, a denser reward than ``correct``."""
        return sum(self.met) / max(1, len(self.met))


def relations(a: Sequence[float], b: Sequence[float], margin: float = MARGIN) -> list[str]:
    """Where box a lies relative to box b (left, top, right, bottom): of the four RELATIONS none to two.

    The offset of the centres is shortened by ``margin`` times the sizes of both, and counts in a direction
    where more than half of its whole length is left.
    """
    offset = [(a[k] + a[k + 2] - b[k] - b[k + 2]) / 2 for k in (0, 1)]
    slack = [margin * (abs(a[k + 2] - a[k]) + abs(b[k + 2] - b[k])) for k in (0, 1)]
    left = [math.copysign(max(abs(o) - s, 0.0), o) for o, s in zip(offset, slack, strict=True)]
    if all(abs(v) < 1e-3 for v in left):
        return []
    dx, dy = (v / math.hypot(*offset) for v in left)
    holds = (dx < -0.5, dx > 0.5, dy < -0.5, dy > 0.5)
    return [name for name, yes in zip(RELATIONS, holds, strict=True) if yes]


def sure(found: Sequence[Detection], threshold: float) -> dict[str, list[Detection]]:
    """Objects above a confidence by label, the surest first, at most 16 of a kind; boxes may overlap."""
    kinds: dict[str, list[Detection]] = defaultdict(list)
    for detection in sorted(found, key=lambda d: -d.confidence):
        if detection.confidence > threshold and len(kinds[detection.label]) < MOST:
            kinds[detection.label].append(detection)
    return dict(kinds)


def judge(picture: Tensor, found: Found, task: Task, name_colours: ColourNamer = own_colours) -> Verdict:
    """Compare what was found in a (3, H, W) picture with what is asked for.

    Colour and place are those of the surest objects, as many as are asked for.
    """
    verdict, groups = Verdict(), list[Sequence[Detection] | None]()
    for item in task.include:
        faults = _faults(picture, found, item, groups, name_colours)
        verdict.met.append(not faults)
        verdict.reasons += faults
        groups.append(None if faults else found[item.label][: item.count])
    for label, count in task.exclude:
        seen = len(found.get(label, ()))
        verdict.met.append(seen < count)
        verdict.reasons += [f"expected {label}<{count}, found {seen}"] if seen >= count else []
    verdict.correct = all(verdict.met)
    return verdict


def _faults(
    picture: Tensor,
    found: Found,
    item: Include,
    groups: Sequence[Sequence[Detection] | None],
    name_colours: ColourNamer,
) -> list[str]:
    """What is wrong with the objects of one demand."""
    objects = found.get(item.label, ())[: item.count]
    if len(objects) < item.count:
        faults = [f"expected {item.label}>={item.count}, found {len(objects)}"]
        return faults
    faults = _colour_faults(name_colours(picture, objects), item) if item.colour else []
    if item.position is not None and not faults:
        faults = _place_faults(objects, groups[item.position[1]], item.label, item.position[0])
    return faults


def _colour_faults(seen: Sequence[str], item: Include) -> list[str]:
    right = sum(c == item.colour for c in seen)
    if right >= item.count:
        return []
    others = ", ".join(f"{seen.count(c)} {c}" for c in dict.fromkeys((*COLOURS, *seen)) if c in seen)
    return [f"expected {item.colour} {item.label}>={item.count}, found {right} {item.colour}; and {others}"]


def _place_faults(
    objects: Sequence[Detection], targets: Sequence[Detection] | None, label: str, relation: str
) -> list[str]:
    if targets is None:
        return [f"no target for {label} to be {relation}"]
    for a in objects:
        for b in targets:
            seen = relations(a.box, b.box)
            if relation not in seen:
                return [f"expected {label} {relation} target, found {' and '.join(seen)} target"]
    return []


@catalogue.register("geneval")
class GenEval(ScorerBase):
    """1 where all that the prompt asks for is there, else 0; ``met`` is the share of the demands.

    Args:
        detector: finds objects.
        tasks: what a prompt asks for; raises ValueError or KeyError for prompts that it does not know.
        name_colours: names colours of objects; the detector's own by default.
        threshold: confidence above which an object counts.
        counting_threshold: the same for tasks with the tag ``counting``.
    """

    name = "geneval"
    dims = ("correct", "met")
    range = (0.0, 1.0)
    differentiable = False
    licence = "Apache-2.0 (own code; GenEval is MIT); the detector has its own"
    citation = "Ghosh et al., GenEval: An Object-Focused Framework, 2023, arXiv:2310.11513"
    weights = 'a json file {"detector": "package.module:Class", "metadata": "evaluation_metadata.jsonl"}'
    size = "the detector's"

    def __init__(
        self,
        detector: Detector,
        tasks: Callable[[str], Task],
        name_colours: ColourNamer = own_colours,
        *,
        threshold: float = THRESHOLD,
        counting_threshold: float = COUNTING_THRESHOLD,
    ) -> None:
        """See the class."""
        super().__init__()
        self.detector, self.tasks, self.name_colours = detector, tasks, name_colours
        self.threshold, self.counting_threshold = threshold, counting_threshold

    @classmethod
    def load(cls, weights: Path | None, *, device: str | torch.device, dtype: torch.dtype) -> GenEval:
        """Make the scorer from a json file: ``detector``, perhaps its ``weights``, ``metadata`` (the tasks).

        ``colours``: ``{"scorer": NAME, "weights": PATH}`` names a two-tower scorer that tells colours apart;
        ``rename``: labels of the detector by what the tasks call them (``{"computer mouse": "mouse"}``).

        Raises:
            FileNotFoundError: no such file.
            ValueError: options or tasks that are not understood.
            RegistryError: no such detector.
        """
        options = read_options(
            cls.name,
            weights,
            cls.weights,
            required=("detector", "metadata"),
            optional=("weights", "colours", "rename"),
        )
        home = folder_of(weights)
        detector = load_detector(options, home, device, dtype)
        namer: ColourNamer = own_colours
        if "colours" in options:
            row = check_options("colours", options["colours"], ("scorer",), ("weights",))
            path = home / row["weights"] if "weights" in row else None
            namer = zero_shot(scorers.load(row["scorer"], path, device, dtype), COLOURS)
        return cls(detector, read_tasks(home / options["metadata"]), namer)

    def verdicts(self, x01: Tensor, prompts: Sequence[str]) -> list[Verdict]:
        """What is right and wrong with each of (B, 3, H, W) pictures in [0, 1].

        Raises:
            ValueError: wrong shapes, an unknown prompt, or objects that the detector does not know.
        """
        check_batch(x01, prompts)
        tasks = [self.tasks(prompt) for prompt in prompts]
        for prompt, task in zip(prompts, tasks, strict=True):
            check_known(self.detector, task.labels, f"prompt {prompt!r}")
        rows = zip(x01, self.detector.detect(x01), tasks, strict=True)
        return [judge(x, self._sure(found, task), task, self.name_colours) for x, found, task in rows]

    def _sure(self, found: Sequence[Detection], task: Task) -> Found:
        return sure(found, self.counting_threshold if task.tag == "counting" else self.threshold)

    def score_dims(self, x01: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """See ScorerBase; raises as ``verdicts`` does."""
        found = self.verdicts(x01, prompts)
        correct = torch.tensor([float(v.correct) for v in found], device=x01.device)
        return {"correct": correct, "met": torch.tensor([v.share for v in found], device=x01.device)}

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """See ScorerBase: only prompts that have a task."""
        for prompt in prompts:
            self.tasks(prompt)

    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,) float32, 1 for right pictures and 0 for others; not differentiable."""
        return self.score_dims(x01, prompts)["correct"]


def by_task(tags: Sequence[str], correct: Sequence[bool]) -> dict[str, float]:
    """Share of right pictures for each tag, and ``overall``, the mean of the tags (not of the pictures).

    Raises:
        ValueError: not as many tags as verdicts, or none.
    """
    if len(tags) != len(correct) or not tags:
        raise ValueError(f"{len(tags)} tags for {len(correct)} verdicts; give one of each, and one at least")
    kinds: dict[str, list[bool]] = defaultdict(list)
    for tag, yes in zip(tags, correct, strict=True):
        kinds[tag].append(yes)
    shares = {tag: sum(found) / len(found) for tag, found in kinds.items()}
    return {**shares, "overall": sum(shares.values()) / len(shares)}
