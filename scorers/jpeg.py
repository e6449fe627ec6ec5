"""Size of a picture as a JPEG file: the reward of DDPO that needs no model."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from PIL import Image
from torch import Tensor

from scorers import catalogue
from scorers.base import ScorerBase, check_batch
from scorers.load_options import LoadOptions

QUALITY = 95
"""JPEG quality of DDPO."""


@dataclass(frozen=True, kw_only=True)
class JpegOptions(LoadOptions):
    """What may be chosen of the compressibility."""

    quality: int = QUALITY
    """JPEG quality, 1 to 95."""


@catalogue.register("jpeg")
class Jpeg(ScorerBase):
    """Compressibility: minus the kilobytes (1000 bytes) of the picture as JPEG, so plain pictures score high.

    Flow-GRPO's variant is this divided by 500. The bytes depend on the build of libjpeg, by a percent or so.

    Args:
        quality: JPEG quality, 1 to 95.

    Raises:
        ValueError: a quality outside 1 to 95.
    """

    name = "jpeg"
    dims: tuple[str, ...] = ("compressibility",)
    range = (-float("inf"), 0.0)
    needs = frozenset()
    differentiable = False
    licence = "Apache-2.0 (own code; DDPO is MIT)"
    citation = "Black et al., Training Diffusion Models with Reinforcement Learning, 2023, arXiv:2305.13301"
    weights = ""
    size = ""
    sign = -1.0
    option_type: ClassVar[type[LoadOptions]] = JpegOptions

    def __init__(self, quality: int = QUALITY) -> None:
        """See the class."""
        super().__init__()
        self._choose(quality)

    @classmethod
    def load(cls, weights: Path | None, *, device: str | torch.device, dtype: torch.dtype) -> Jpeg:
        """Make the scorer; it has no weights, and always works on the CPU."""
        return cls()

    def take_options(self, options: LoadOptions) -> None:
        """See ScorerBase."""
        super().take_options(options)
        if isinstance(options, JpegOptions):
            self._choose(options.quality)

    def _choose(self, quality: int) -> None:
        if not 1 <= quality <= 95:
            raise ValueError(f"JPEG quality is {quality}; it must be between 1 and 95")
        self.quality = quality

    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,) float32 kilobytes, with the sign, of (B, 3, H, W) pictures in [0, 1]; not differentiable."""
        check_batch(x01, prompts)
        return self.sign * kilobytes(x01, self.quality).to(x01.device)


@catalogue.register("jpeg-incompressibility")
class Incompressible(Jpeg):
    """Incompressibility: the kilobytes of the picture as JPEG, so busy pictures score high."""

    name = "jpeg-incompressibility"
    dims = ("incompressibility",)
    range = (0.0, float("inf"))
    sign = 1.0


def kilobytes(x01: Tensor, quality: int = QUALITY) -> Tensor:
    """(B,) float32 size in units of 1000 bytes of (B, 3, H, W) pictures in [0, 1], on the CPU."""
    return torch.tensor([len(encode(picture, quality)) / 1000 for picture in to_bytes(x01)])


def to_bytes(x01: Tensor) -> Tensor:
    """(B, H, W, 3) uint8, on the CPU, of (B, 3, H, W) pictures in [0, 1]; rounded, and cut outside."""
    return (x01.detach().float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu()


def encode(picture: Tensor, quality: int = QUALITY) -> bytes:
    """JPEG file of a (H, W, 3) uint8 picture."""
    file = io.BytesIO()
    Image.fromarray(picture.numpy()).save(file, "JPEG", quality=quality)
    return file.getvalue()
