"""Aesthetic scores: how beautiful people would find a picture, by heads on CLIP or SigLIP."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scorers import catalogue
from scorers.base import ScorerBase, check_batch
from scorers.clip_hf import OLD_KEYS, load_clip, restore_positions
from scorers.clip_open import FILES, load_open_clip, picture_side
from scorers.load_options import LoadOptions, PictureOptions
from scorers.loading import build, need_weights, read_state
from scorers.preprocess import Preprocess, SquashPreprocess, Transform

logger = logging.getLogger(__name__)

WIDTHS = (1024, 128, 64, 16, 1)


class Aesthetic(ScorerBase):
    """Head on the unit feature of a picture; prompts are ignored.

    Args:
        tower: turns (B, 3, size, size) preprocessed pictures into (B, D); it runs in its own precision.
        head: turns (B, D) into (B, 1), in float32.
        side: of the pictures that the tower takes.
    """

    needs = frozenset()
    dims = ("aesthetic",)
    option_type: ClassVar[type[LoadOptions]] = PictureOptions
    heads: tuple[str, ...]
    """Names of the published files of heads."""

    def __init__(self, tower: nn.Module, head: nn.Module, side: int) -> None:
        """See the class."""
        super().__init__()
        self.tower, self.head = tower, head
        self.preprocess: Transform = self.transform(side)
        self.eval().requires_grad_(False)

    @classmethod
    def transform(cls, side: int) -> Transform:
        """Transform of pictures: OpenAI's unless a scorer says otherwise."""
        return Preprocess(size=side, crop="round")

    @classmethod
    def read_tower(cls, folder: Path) -> tuple[nn.Module, int, int]:
        """Tower of a folder, side of its pictures, and width of its features."""
        return clip_tower(folder)

    @classmethod
    @abstractmethod
    def make_head(cls, state: Mapping[str, Tensor], width: int) -> Callable[[], nn.Module]:
        """What builds the head of a checkpoint."""

    @classmethod
    def load(
        cls, weights: Path | None, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> Self:
        """Load a folder that holds the published head (or ``head.safetensors``) beside the tower's weights.

        Raises:
            FileNotFoundError: no folder given or found, or the head or the tower is missing in it.
            ValueError: weights that do not fit key by key.
        """
        folder = need_weights(cls.name, weights, cls.weights)
        head = cls._head_file(folder)
        tower, side, width = cls.read_tower(folder)
        state = read_state(head)
        made = build(cls.make_head(state, width), state, where=head)
        return cls(tower.to(dtype=dtype), made.float(), side).to(device)

    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score pictures (B, 3, H, W) in [0, 1], nominally 1 to 10; prompts are ignored: (B,) float32.

        Raises:
            ValueError: wrong shapes, or not one prompt per picture (empty ones will do).
        """
        check_batch(x01, prompts)
        return self.feature_score(self.image_features(self.preprocess(x01)))

    def image_features(self, pixels: Tensor) -> Tensor:
        """(B, D) float32 features of preprocessed pictures, not yet of unit length."""
        out: Tensor = self.tower(pixels.to(next(self.tower.parameters()).dtype))
        return out.float()

    def feature_score(self, features: Tensor) -> Tensor:
        """(B,) scores of features (B, D) of any length; of a feature that is 0, that of 0."""
        with torch.autocast(features.device.type, enabled=False):
            out: Tensor = self.head(F.normalize(features, dim=-1))[:, 0]
        return out

    def cross_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        """See ScorerBase; the same for every prompt."""
        return self.score_tensor(x01, [""] * len(x01))[:, None].expand(-1, len(prompts))

    @classmethod
    def _head_file(cls, folder: Path) -> Path:
        names = (*cls.heads, "head.safetensors")
        for name in names:
            if (folder / name).is_file():
                return folder / name
        raise FileNotFoundError(
            f"scorer {cls.name!r}: {folder} holds no head; put {' or '.join(names)} beside the tower"
        )


@catalogue.register("aesthetic-v1")
class AestheticV1(Aesthetic):
    """LAION's first predictor: a linear head on OpenAI's CLIP, ViT-L/14 (or B/32, B/16)."""

    name = "aesthetic-v1"
    licence = "MIT"
    citation = "LAION aesthetic predictor, 2022, github.com/LAION-AI/aesthetic-predictor"
    weights = "sa_0_4_vit_l_14_linear.pth (LAION-AI/aesthetic-predictor) beside OpenAI's ViT-L/14"
    size = "304 M"
    heads = tuple(f"sa_0_4_vit_{tower}_linear.pth" for tower in ("l_14", "b_32", "b_16"))

    @classmethod
    def make_head(cls, state: Mapping[str, Tensor], width: int) -> Callable[[], nn.Module]:
        """See Aesthetic."""
        return lambda: nn.Linear(width, 1)


@catalogue.register("aesthetic-v2")
class AestheticV2(Aesthetic):
    """LAION's improved predictor: five layers on OpenAI's CLIP ViT-L/14.

    Without activations the head is an affine map; one of the published variants has ReLUs.
    """

    name = "aesthetic-v2"
    licence = "Apache-2.0"
    citation = "Schuhmann, 2022, github.com/christophschuhmann/improved-aesthetic-predictor"
    weights = "sac+logos+ava1-l14-linearMSE.pth (improved-aesthetic-predictor) beside OpenAI's ViT-L/14"
    size = "305 M"
    heads = ("sac+logos+ava1-l14-linearMSE.pth", "ava+logos-l14-linearMSE.pth", "ava+logos-l14-reluMSE.pth")

    @classmethod
    def make_head(cls, state: Mapping[str, Tensor], width: int) -> Callable[[], nn.Module]:
        """See Aesthetic; the places of the layers in the file tell the variants apart."""
        return lambda: V2Head(width, relu="layers.9.weight" in state)


@catalogue.register("aesthetic-v2.5")
class AestheticV25(Aesthetic):
    """Aesthetic predictor v2.5: five layers on the pooled feature of SigLIP so400m, without activations."""

    name = "aesthetic-v2.5"
    licence = "AGPL-3.0 weights, which you must bring; own code"
    citation = "discus0434, aesthetic predictor v2.5, 2024, github.com/discus0434/aesthetic-predictor-v2-5"
    weights = (
        "aesthetic_predictor_v2_5.pth (aesthetic-predictor-v2-5) beside google/siglip-so400m-patch14-384"
    )
    size = "429 M"
    heads = ("aesthetic_predictor_v2_5.pth",)

    @classmethod
    def transform(cls, side: int) -> Transform:
        """See Aesthetic; SigLIP does not keep the shape."""
        return SquashPreprocess(size=side)

    @classmethod
    def read_tower(cls, folder: Path) -> tuple[nn.Module, int, int]:
        """See Aesthetic; warns of the licence."""
        logger.warning("the head of aesthetic-v2.5 is under AGPL-3.0, also where it is used over a network")
        return siglip_tower(folder)

    @classmethod
    def make_head(cls, state: Mapping[str, Tensor], width: int) -> Callable[[], nn.Module]:
        """See Aesthetic."""
        return lambda: V25Head(width)


class V2Head(nn.Module):
    """Head of aesthetic-v2; module names are those of the published files. Dropout only acts in training."""

    def __init__(self, width: int, *, relu: bool = False) -> None:
        """``relu`` puts one behind each layer but the last."""
        super().__init__()
        layers: list[nn.Module] = []
        for i, (n, drop) in enumerate(zip(WIDTHS, (0.2, 0.2, 0.1, None, None), strict=True)):
            layers.append(nn.Linear(WIDTHS[i - 1] if i else width, n))
            layers += [nn.ReLU()] if relu and n > 1 else []
            layers += [nn.Dropout(drop)] if drop else []
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width) unit features to (B, 1)."""
        out: Tensor = self.layers(x)
        return out


class V25Head(nn.Module):
    """Head of aesthetic-v2.5; module names are those of the published file. Dropout only acts in training."""

    def __init__(self, width: int) -> None:
        """``width`` is that of the features."""
        super().__init__()
        layers: list[nn.Module] = []
        for i, (n, drop) in enumerate(zip(WIDTHS, (0.5, 0.5, 0.5, 0.2, None), strict=True)):
            layers.append(nn.Linear(WIDTHS[i - 1] if i else width, n))
            layers += [nn.Dropout(drop)] if drop else []
        self.scoring_head = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width) unit features to (B, 1)."""
        out: Tensor = self.scoring_head(x)
        return out


class _HfTower(nn.Module):
    """Projected (or pooled, without a projection) feature of a transformers vision model."""

    def __init__(self, vision_model: nn.Module, projection: nn.Module) -> None:
        super().__init__()
        self.vision_model, self.projection = vision_model, projection

    def forward(self, pixels: Tensor) -> Tensor:
        out: Tensor = self.projection(self.vision_model(pixel_values=pixels).pooler_output)
        return out


def clip_tower(folder: Path) -> tuple[nn.Module, int, int]:
    """CLIP's tower for pictures, side of the pictures, width of the features.

    A transformers CLIPModel (``config.json``), or an open_clip file, which is ViT-L/14 unless
    ``open_clip_config.json`` says otherwise.

    Raises:
        FileNotFoundError: neither is there.
        ValueError: the weights do not fit.
    """
    if (folder / "config.json").is_file():
        clip: Any = load_clip(folder)
        return (
            _HfTower(clip.vision_model, clip.visual_projection),
            clip.config.vision_config.image_size,
            clip.config.projection_dim,
        )
    if not any((folder / name).is_file() for name in FILES):
        raise FileNotFoundError(
            f"{folder} holds no tower: neither config.json of a saved CLIPModel nor {' nor '.join(FILES)}"
        )
    model: Any = load_open_clip(folder, "ViT-L-14-quickgelu").float()
    return model.visual, picture_side(model), model.visual.output_dim


def siglip_tower(folder: Path) -> tuple[nn.Module, int, int]:
    """SigLIP's tower for pictures with its attention pool, side of the pictures, width of the features.

    Raises:
        FileNotFoundError: no weights there.
        ValueError: they do not fit.
    """
    from transformers import SiglipVisionModel

    config = _siglip_config(folder)
    state = read_state(folder)
    # Checkpoints of both towers, and of transformers before 5, have one level more.
    inner = {k.removeprefix("vision_model."): v for k, v in state.items() if k.startswith("vision_model.")}
    tower = build(lambda: SiglipVisionModel(config), inner or state, where=folder, ignore=OLD_KEYS)
    restore_positions(tower)
    return _HfTower(tower.float(), nn.Identity()), config.image_size, config.hidden_size


def _siglip_config(folder: Path) -> Any:
    """Sizes by the folder's config.json, or those of so400m-patch14-384."""
    from transformers import SiglipVisionConfig

    if (folder / "config.json").is_file():
        return SiglipVisionConfig.from_pretrained(folder, local_files_only=True)
    return SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        image_size=384,
        patch_size=14,
    )
