"""Qwen2-VL's transform of pictures (P-QWEN): smart resize and patches, with gradients to the pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scorers.preprocess import Transform, pil_resize, resize

LONGEST_ASPECT = 200
"""Longest side over shortest beyond which Qwen2-VL refuses a picture."""


def smart_resize(
    height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Height and width that Qwen2-VL resizes to: multiples of ``factor`` of nearly the same aspect.

    Sides are rounded to multiples; if their product then leaves [min_pixels, max_pixels], both are scaled to
    the limit and rounded down (too large) or up (too small), so it may end a little beyond the other limit.

    Raises:
        ValueError: an empty picture, or one side more than 200 times the other.
    """
    if min(height, width) < 1 or max(height, width) > LONGEST_ASPECT * min(height, width):
        raise ValueError(
            f"a picture of {height} x {width} pixels: no side may be over {LONGEST_ASPECT} times the other"
        )
    h, w = (max(factor, round(side / factor) * factor) for side in (height, width))
    if h * w > max_pixels:
        beta = math.sqrt(height * width / max_pixels)
        return math.floor(height / beta / factor) * factor, math.floor(width / beta / factor) * factor
    if h * w < min_pixels:
        beta = math.sqrt(min_pixels / (height * width))
        return math.ceil(height * beta / factor) * factor, math.ceil(width * beta / factor) * factor
    return h, w


@dataclass(frozen=True, kw_only=True)
class QwenPixels(Transform):
    """Qwen2-VL's image processor as differentiable operations; the aspect of the picture is nearly kept.

    Calling it gives (B, 3, H, W), ``patches`` what the vision tower takes. Without the two limits every
    picture gets about ``size`` * ``size`` pixels, as HPSv3 has it.
    """

    size: int = 448
    min_pixels: int | None = None
    """Fewest pixels of a picture; None is size * size."""
    max_pixels: int | None = None
    """Most pixels of a picture; None is size * size."""
    patch: int = 14
    merge: int = 2
    """Patches per side that become one token."""
    temporal: int = 2
    """Frames of a patch; a picture is repeated."""

    @property
    def id(self) -> str:
        """See Transform."""
        return f"qwen-{self._pixels(self.min_pixels)}-{self._pixels(self.max_pixels)}-{self.mode}"

    def patches(self, x01: Tensor) -> tuple[Tensor, Tensor]:
        """Turn (B, 3, H, W) in [0, 1] into patches and their grid.

        Returns:
            Patches (B * gh * gw, 3 * temporal * patch^2) float32, and grid (B, 3) int64: 1, gh, gw each.

        Raises:
            ValueError: one side is more than 200 times the other.
        """
        x = self(x01)
        grid = torch.tensor([[1, x.shape[2] // self.patch, x.shape[3] // self.patch]], device=x.device)
        return self.patchify(x), grid.expand(len(x), -1)

    def sides(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that a picture of this height and width is resized to."""
        low, high = self._pixels(self.min_pixels), self._pixels(self.max_pixels)
        return smart_resize(height, width, factor=self.patch * self.merge, min_pixels=low, max_pixels=high)

    def tokens(self, height: int, width: int) -> int:
        """How many tokens a picture of this height and width takes in the text."""
        h, w = self.sides(height, width)
        return h * w // (self.patch * self.merge) ** 2

    def patchify(self, x: Tensor) -> Tensor:
        """Cut (B, 3, H, W) into patches (B * gh * gw, 3 * temporal * patch^2).

        Rows run over pictures, then merged blocks, then the patches of a block; columns over channel, frame,
        row, column.
        """
        p, m = self.patch, self.merge
        b, c, h, w = x.shape
        x = x.reshape(b, c, h // (p * m), m, p, w // (p * m), m, p)
        x = x.permute(0, 2, 5, 3, 6, 1, 4, 7).flatten(0, 4)  # (B * gh * gw, 3, p, p)
        return x[:, :, None].expand(-1, -1, self.temporal, -1, -1).flatten(1)

    def _smooth(self, x01: Tensor) -> Tensor:
        """Cut to [0, 1] as bytes are, but not rounded."""
        sides = self.sides(*x01.shape[-2:])
        return x01 if sides == tuple(x01.shape[-2:]) else resize(x01, *sides).clamp(0, 1)

    def _published(self, x01: Tensor) -> Tensor:
        return pil_resize(x01, *self.sides(*x01.shape[-2:]))

    def _pixels(self, limit: int | None) -> int:
        return self.size * self.size if limit is None else limit
