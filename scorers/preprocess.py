"""CLIP's transform of pictures, on tensors, so that gradients reach the pixels."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """CLIP's transform as differentiable operations: short side to ``size``, centre crop, normalise."""

    size: int
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    @classmethod
    def load(cls, folder: Path, size: int) -> Preprocess:
        """Take mean and deviation from the folder's preprocessor_config.json, if it has one."""
        file = folder / "preprocessor_config.json"
        found = json.loads(file.read_text()) if file.is_file() else {}
        mean, std = found.get("image_mean", CLIP_MEAN), found.get("image_std", CLIP_STD)
        return cls(size=size, mean=tuple(mean), std=tuple(std))

    def __call__(self, x01: Tensor) -> Tensor:
        """Turn (B, 3, H, W) in [0, 1] into normalised (B, 3, size, size)."""
        x = self.fit(x01)
        mean, std = (
            torch.tensor(v, dtype=x.dtype, device=x.device)[:, None, None] for v in (self.mean, self.std)
        )
        return (x - mean) / std

    def fit(self, x01: Tensor) -> Tensor:
        """Resize (bicubic, antialiased, cut to [0, 1] as bytes) and crop; the right size is left alone."""
        height, width = x01.shape[-2:]
        if min(height, width) != self.size:
            short = min(height, width)
            height, width = (max(self.size, int(self.size * side / short)) for side in (height, width))
            x01 = F.interpolate(
                x01, (height, width), mode="bicubic", antialias=True, align_corners=False
            ).clamp(0, 1)
        top, left = (height - self.size) // 2, (width - self.size) // 2
        return x01[..., top : top + self.size, left : left + self.size]

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
