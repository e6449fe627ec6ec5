"""Directions of pictures in a feature space, in which their distance says how different they look."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from diffalign.data.records import DataError
from diffalign.label.judges import Judge

SIDE = 8


@runtime_checkable
class ImageEncoder(Protocol):
    """A scorer with an image tower, such as PickScore."""

    def encode_images(self, x01: Tensor) -> Tensor:
        """(B, D) features of (B, 3, H, W) pictures in [0, 1]."""
        ...


def pixel_features(x01: Tensor) -> Tensor:
    """(B, 193) unit vectors: pictures shrunk to 8 x 8, about mid-grey; a constant so that none is 0."""
    small = functional.interpolate(x01, size=(SIDE, SIDE), mode="area").flatten(1) - 0.5
    return functional.normalize(functional.pad(small, (0, 1), value=1e-3), dim=1)


def encode(x01: Tensor, judge: Judge | None) -> Tensor:
    """(B, D) unit features of (B, 3, H, W) pictures in [0, 1], by a scorer's image tower or of the pixels."""
    if judge is None:
        return pixel_features(x01)
    if not isinstance(judge.scorer, ImageEncoder):
        raise DataError(
            f"features={judge.name}: this scorer has no image features; take pixels, or pickscore"
        )
    with torch.no_grad():
        return functional.normalize(judge.scorer.encode_images(x01.to(judge.device)).float().cpu(), dim=1)
