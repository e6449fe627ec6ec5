"""What finds objects in pictures, for measures that ask what is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from scorers.registry import Registry

GREY = 0.6
"""Level (#999) that GenEval lays behind an object before it names its colour."""
TEMPLATES = (
    "a photo of a {colour} {label}",
    "a photo of a {colour}-colored {label}",
    "a photo of a {colour} object",
)
"""Prompts whose mean text feature stands for a colour, in GenEval."""


@dataclass(frozen=True, kw_only=True)
class Detection:
    """One object in a picture."""

    label: str
    box: tuple[float, float, float, float]
    """Left, top, right, bottom in pixels."""
    confidence: float
    """In [0, 1]."""
    mask: Tensor | None = None
    """(H, W) bool, where the object is; None from detectors of boxes."""
    colour: str | None = None
    """Name of its colour, from detectors that know."""


class Detector(Protocol):
    """What finds objects: any object with these."""

    labels: Sequence[str]
    """Every kind of object that it knows."""

    def detect(self, x01: Tensor) -> list[list[Detection]]:
        """Objects in each of (B, 3, H, W) pictures in [0, 1], RGB; in any order, of any confidence."""
        ...


class ColourNamer(Protocol):
    """What names colours of objects."""

    def __call__(self, picture: Tensor, found: Sequence[Detection]) -> list[str]:
        """Colour of each object of a (3, H, W) picture in [0, 1]."""
        ...


class DetectorLoader(Protocol):
    """What is registered under a detector's name."""

    def load(self, weights: Path | None, *, device: str | torch.device, dtype: torch.dtype) -> Detector:
        """Load the detector from local weights. Never uses the network."""
        ...


detectors: Registry[DetectorLoader] = Registry("detector", entry_points="detectors")
"""Detectors by name, from the entry-point group ``detectors``, or ``package.module:Class``."""


class Renamed:
    """A detector whose labels are called otherwise.

    Args:
        detector: finds objects.
        names: its labels by what they are to be called.

    Raises:
        ValueError: a label that the detector does not know.
    """

    def __init__(self, detector: Detector, names: Mapping[str, str]) -> None:
        """See the class."""
        check_known(detector, list(names.values()), "rename")
        self.detector, self._called = detector, {old: new for new, old in names.items()}
        self.labels: Sequence[str] = [self._called.get(label, label) for label in detector.labels]

    def detect(self, x01: Tensor) -> list[list[Detection]]:
        """See Detector."""
        return [
            [replace(d, label=self._called.get(d.label, d.label)) for d in found]
            for found in self.detector.detect(x01)
        ]


def load_detector(
    options: Mapping[str, Any], home: Path, device: str | torch.device, dtype: torch.dtype
) -> Detector:
    """Load the detector that options name: ``detector``, ``weights`` (a path from ``home``), ``rename``.

    Raises:
        RegistryError: no such detector.
        FileNotFoundError: its weights are not there.
        ValueError: it does not know a label that is renamed.
    """
    given = home / options["weights"] if "weights" in options else None
    if given is not None and not given.exists():
        raise FileNotFoundError(f"weights of detector {options['detector']!r}: {given} does not exist")
    found = detectors.get(str(options["detector"])).load(given, device=device, dtype=dtype)
    return Renamed(found, options["rename"]) if options.get("rename") else found


def check_known(detector: Detector, labels: Sequence[str], where: str) -> None:
    """See that a detector can find what is asked for.

    Raises:
        ValueError: a label that it does not know, so that it would count as missing in every picture.
    """
    unknown = sorted(set(labels) - set(detector.labels))
    if unknown:
        raise ValueError(
            f"{where} asks for {', '.join(unknown)}, which the detector does not know; it knows "
            f"{', '.join(sorted(detector.labels)[:40])}"
        )


def own_colours(picture: Tensor, found: Sequence[Detection]) -> list[str]:
    """Colours as the detector itself named them.

    Raises:
        ValueError: an object without one.
    """
    if any(d.colour is None for d in found):
        raise ValueError("the detector names no colours; give a ColourNamer, such as ZeroShotColours")
    return [d.colour or "" for d in found]


class ZeroShotColours:
    """GenEval's colour classifier: the object on grey, cropped to its box, against texts of each colour.

    Args:
        encode_images: (B, 3, H, W) in [0, 1] to unit features (B, D); ``PickScore.encode_images``, or that of
            any two-tower scorer, in GenEval of CLIP ViT-L/14.
        encode_texts: n texts to unit features (n, D).
        colours: names that can be given.
    """

    def __init__(
        self,
        encode_images: Callable[[Tensor], Tensor],
        encode_texts: Callable[[Sequence[str]], Tensor],
        colours: Sequence[str],
    ) -> None:
        """See the class."""
        self.encode_images, self.encode_texts, self.colours = encode_images, encode_texts, list(colours)

    @torch.no_grad()
    def __call__(self, picture: Tensor, found: Sequence[Detection]) -> list[str]:
        """See ColourNamer."""
        names = []
        for detection in found:
            image = self.encode_images(cut_out(picture, detection)[None])  # (1, D)
            names.append(self.colours[int((image @ self._classes(detection.label).T).argmax())])
        return names

    def _classes(self, label: str) -> Tensor:
        """(colours, D) unit features."""
        texts = [t.format(colour=c, label=label) for c in self.colours for t in TEMPLATES]
        features = self.encode_texts(texts).unflatten(0, (-1, len(TEMPLATES))).mean(1)
        return torch.nn.functional.normalize(features, dim=-1)


def zero_shot(scorer: object, colours: Sequence[str]) -> ZeroShotColours:
    """Colours by a scorer with two towers.

    Raises:
        ValueError: it has no ``encode_images`` and ``encode_prompts``.
    """
    images, texts = (getattr(scorer, name, None) for name in ("encode_images", "encode_prompts"))
    if images is None or texts is None:
        raise ValueError(
            f"{type(scorer).__name__} has no two towers, so it cannot name colours; take clipscore"
        )
    return ZeroShotColours(images, texts, colours)


def box_of(mask: Tensor) -> tuple[float, float, float, float]:
    """Left, top, right, bottom in pixels of a (H, W) bool mask that is not empty."""
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    return float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1)


def cut_out(picture: Tensor, detection: Detection) -> Tensor:
    """(3, h, w) part of a (3, H, W) picture in the object's box, grey where its mask is not."""
    if detection.mask is not None:
        picture = torch.where(detection.mask.to(picture.device), picture, GREY)
    height, width = picture.shape[1:]
    left, top, right, bottom = (round(v) for v in detection.box)
    left, top = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
    return picture[:, top : max(top + 1, bottom), left : max(left + 1, right)]
