"""Picture embeddings of DINOv2 and CLIP folders, for measures of diversity."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scorers.clip_hf import restore_positions
from scorers.loading import build, read_state
from scorers.preprocess import CLIP_MEAN, CLIP_STD, check_shape

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Crop:
    """Bicubic resize of the short side, centre crop, normalise; differentiable."""

    resize: int
    """Short side in pixels; 256 for DINOv2, 224 for CLIP."""
    crop: int
    """Side of the square that is cut out."""
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def load(cls, folder: Path, kind: str, side: int) -> Crop:
        """Take the sizes from the folder's preprocessor_config.json, else what the kind of model has."""
        file = folder / "preprocessor_config.json"
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        dino = kind.startswith("dino")
        crop = _side(found.get("crop_size"), side)
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if dino else (CLIP_MEAN, CLIP_STD)
        return cls(
            resize=_side(found.get("size"), round(crop * 256 / 224) if dino else crop),
            crop=crop,
            mean=tuple(found.get("image_mean", mean)),
            std=tuple(found.get("image_std", std)),
        )

    def __call__(self, x01: Tensor) -> Tensor:
        """Turn (B, 3, H, W) in [0, 1] into normalised (B, 3, crop, crop)."""
        short = min(x01.shape[-2:])
        check_shape(*x01.shape[-2:])
        if short != self.resize:
            size = [max(self.resize, int(self.resize * side / short)) for side in x01.shape[-2:]]
            x01 = F.interpolate(x01, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        top, left = ((side - self.crop) // 2 for side in x01.shape[-2:])
        x = x01[..., top : top + self.crop, left : left + self.crop]
        mean, std = (x.new_tensor(v)[:, None, None] for v in (self.mean, self.std))
        return (x - mean) / std

    def __str__(self) -> str:
        """Say what is done, for the record."""
        return f"bicubic short side {self.resize}, centre crop {self.crop}"


class Embedder(nn.Module):
    """Frozen image tower: the class token of DINOv2 after its last norm, or CLIP's projected features.

    Args:
        model: a transformers Dinov2Model, CLIPModel or CLIPVisionModelWithProjection.
        transform: how pictures are prepared.
        about: name and kind of the model, for the record.
    """

    def __init__(self, model: nn.Module, transform: Crop, about: str) -> None:
        """See the class."""
        super().__init__()
        self.model, self.transform, self.about = model, transform, about
        self.eval().requires_grad_(False)

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype = torch.float32) -> Embedder:
        """Load a folder with config.json and weights.

        Raises:
            FileNotFoundError: no config.json or weights there.
            ValueError: another kind of model, or weights that do not fit key by key.
        """
        from transformers import AutoConfig

        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{folder} holds no config.json; give the folder of a saved model")
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        kind = str(config.model_type)
        make, prefix = _builder(config, kind, folder)
        state = {
            k.removeprefix(prefix): v.float()
            for k, v in read_state(folder).items()
            if not k.endswith("position_ids")
        }
        model = build(make, state, where=folder)
        restore_positions(model)
        side = int(getattr(config, "vision_config", config).image_size)
        about = f"{kind} {getattr(config, '_name_or_path', '') or folder.name}"
        return cls(model.to(dtype), Crop.load(folder, kind, 224 if kind == "dinov2" else side), about)

    def forward(self, x01: Tensor) -> Tensor:
        """(B, D) float32 features, not normalised, of pictures (B, 3, H, W) in [0, 1]; differentiable."""
        pixels = self.transform(x01.float()).to(next(self.model.parameters()).dtype)
        encode: Any = getattr(self.model, "get_image_features", None)
        if encode is not None:
            found = encode(pixel_values=pixels)
            projected: Tensor = found if isinstance(found, Tensor) else found.pooler_output
            return projected.float()
        out: Any = self.model(pixel_values=pixels)
        features: Tensor = out.image_embeds if hasattr(out, "image_embeds") else out.last_hidden_state[:, 0]
        return features.float()


def _builder(config: Any, kind: str, folder: Path) -> tuple[Any, str]:
    """What makes the empty model, and a prefix that its checkpoints may carry."""
    import transformers

    if kind in ("dinov2", "dinov2_with_registers"):
        name = "Dinov2Model" if kind == "dinov2" else "Dinov2WithRegistersModel"
        return lambda: getattr(transformers, name)(config), f"{kind}."
    if kind == "clip":
        return lambda: transformers.CLIPModel(config), ""
    if kind == "clip_vision_model":
        return lambda: transformers.CLIPVisionModelWithProjection(config), ""
    raise ValueError(f"{folder} holds a {kind} model; embeddings come from dinov2, clip or clip_vision_model")


def _side(given: Any, default: int) -> int:
    """Side in pixels of a preprocessor_config's size: a number, or one of its named forms."""
    if isinstance(given, dict):
        given = given.get("shortest_edge", given.get("height"))
    return default if given is None else int(given)
