"""Transforms of pictures before a tower, as published, on tensors, so that gradients reach the pixels."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

LONGEST = 16
"""How many times longer than the other a side may be where the short one is enlarged or reduced to a fixed
size: at 224 pixels that is 10 MB a picture, and only its middle would be looked at."""

Mode = Literal["tensor", "exact"]
Antialias = Literal["modern", "reference-2023"]


@dataclass(frozen=True, kw_only=True)
class Transform(ABC):
    """Resize to ``size`` and normalise. Subclasses say how the shape of the picture is treated."""

    size: int
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    mode: Mode = "tensor"
    """``"tensor"``: smooth operations on the device. ``"exact"``: the very pixels of the published transform
    (Pillow, on the CPU, in bytes), while the gradient is that of the tensor operations (straight-through)."""

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ValueError: unknown mode, or a size below 1.
        """
        if self.mode not in ("tensor", "exact"):
            raise ValueError(f"preprocess must be 'tensor' or 'exact', not {self.mode!r}")
        if self.size < 1:
            raise ValueError(f"a picture needs at least 1 pixel a side, got size {self.size}")

    def __call__(self, x01: Tensor) -> Tensor:
        """Turn (B, 3, H, W) in [0, 1] into normalised (B, 3, size, size) float32."""
        x = self.fit(x01)
        mean, std = (
            torch.tensor(v, dtype=x.dtype, device=x.device)[:, None, None] for v in (self.mean, self.std)
        )
        return (x - mean) / std

    def fit(self, x01: Tensor) -> Tensor:
        """Resize without normalising: (B, 3, size, size) float32; the right size is left alone."""
        x01 = x01.float()
        if self.mode == "tensor":
            return self._smooth(x01)
        if not (x01.requires_grad and torch.is_grad_enabled()):
            return self._published(x01)
        x = self._smooth(x01)
        return x + (self._published(x01) - x).detach()

    @property
    def id(self) -> str:
        """What was done, for the record of scores, e.g. ``preprocess-224-tensor``."""
        return f"{type(self).__name__.lower()}-{self.size}-{self.mode}"

    @abstractmethod
    def _smooth(self, x01: Tensor) -> Tensor:
        """Differentiable form of the transform."""

    @abstractmethod
    def _published(self, x01: Tensor) -> Tensor:
        """Published form of the transform."""


@dataclass(frozen=True, kw_only=True)
class Preprocess(Transform):
    """CLIP's transform (P-CROP): short side to ``size``, bicubic, centre crop, normalise."""

    crop: Literal["floor", "round"] = "floor"
    """Where the crop begins when an odd number of pixels is left over: rounded down (transformers) or to the
    even number (torchvision, so OpenAI's and open_clip's transforms)."""

    @classmethod
    def load(cls, folder: Path, size: int) -> Preprocess:
        """Take mean and deviation from the folder's preprocessor_config.json, if it has one."""
        file = folder / "preprocessor_config.json"
        found = json.loads(file.read_text()) if file.is_file() else {}
        mean, std = found.get("image_mean", CLIP_MEAN), found.get("image_std", CLIP_STD)
        return cls(size=size, mean=tuple(mean), std=tuple(std))

    def _smooth(self, x01: Tensor) -> Tensor:
        """Cut to [0, 1] as bytes are, but not rounded."""
        height, width = self._sides(x01)
        if (height, width) != tuple(x01.shape[-2:]):
            x01 = resize(x01, height, width).clamp(0, 1)
        return self._crop(x01)

    def _published(self, x01: Tensor) -> Tensor:
        return self._crop(pil_resize(x01, *self._sides(x01)))

    def _sides(self, x01: Tensor) -> tuple[int, int]:
        height, width = x01.shape[-2:]
        short = min(height, width)
        check_shape(height, width)
        return int(self.size * height / short), int(self.size * width / short)

    def _crop(self, x: Tensor) -> Tensor:
        spare = [side - self.size for side in x.shape[-2:]]
        top, left = (n // 2 if self.crop == "floor" else round(n / 2) for n in spare)
        return x[..., top : top + self.size, left : left + self.size]

    def to_dict(self) -> dict[str, Any]:
        """Content of the preprocessor_config.json that transformers' CLIPImageProcessor reads."""
        return {
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": self.size},
            "resample": 3,
            "do_center_crop": True,
            "crop_size": {"height": self.size, "width": self.size},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }


@dataclass(frozen=True, kw_only=True)
class PadPreprocess(Transform):
    """HPSv2's transform (P-PAD): long side to ``size``, black bars around the rest, normalise.

    The published transform works on float tensors without cutting to [0, 1], so both modes are the same.
    """

    antialias: Antialias = "modern"
    """torchvision smooths before it makes tensors smaller since 0.17; ``"reference-2023"`` gives the numbers
    of earlier versions."""

    @property
    def id(self) -> str:
        """See Transform."""
        return f"pad-{self.size}-{self.antialias}"

    def _smooth(self, x01: Tensor) -> Tensor:
        height, width = x01.shape[-2:]
        scale = self.size / max(height, width)
        new = max(1, round(height * scale)), max(1, round(width * scale))
        if new != (height, width):
            x01 = resize(x01, *new, antialias=self.antialias == "modern")
        down, across = (self.size - n for n in new)
        bars = (across // 2, across - across // 2, down // 2, down - down // 2)
        return F.pad(x01, bars) if any(bars) else x01

    def _published(self, x01: Tensor) -> Tensor:
        return self._smooth(x01)


@dataclass(frozen=True, kw_only=True)
class SquashPreprocess(Transform):
    """SigLIP's transform: both sides to ``size``, bicubic, whatever the shape, then normalise."""

    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def _smooth(self, x01: Tensor) -> Tensor:
        if tuple(x01.shape[-2:]) == (self.size, self.size):
            return x01
        return resize(x01, self.size, self.size).clamp(0, 1)

    def _published(self, x01: Tensor) -> Tensor:
        return pil_resize(x01, self.size, self.size)


def check_shape(height: int, width: int) -> None:
    """See that a picture may be resized by its short side.

    Raises:
        ValueError: it is a strip, of which the long side would become huge.
    """
    if max(height, width) > LONGEST * min(height, width):
        raise ValueError(
            f"a picture of {height} x {width} pixels is a strip; one side may be at most {LONGEST} times the "
            "other where the middle is cut out: crop it"
        )


def resize(x01: Tensor, height: int, width: int, *, antialias: bool = True) -> Tensor:
    """Bicubic resize of (B, 3, H, W) on its device, differentiable; overshoots [0, 1] at edges."""
    return F.interpolate(x01, (height, width), mode="bicubic", antialias=antialias, align_corners=False)


def pil_resize(x01: Tensor, height: int, width: int) -> Tensor:
    """Bicubic resize of (B, 3, H, W) in [0, 1] by Pillow, in bytes: (B, 3, height, width). No gradient."""
    pixels = (x01.detach().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    bicubic = Image.Resampling.BICUBIC
    found = np.stack([np.asarray(Image.fromarray(p).resize((width, height), bicubic)) for p in pixels])
    return torch.from_numpy(found).permute(0, 3, 1, 2).to(x01.device, torch.float32) / 255
