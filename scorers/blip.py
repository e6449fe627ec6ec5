"""The network of ImageReward on transformers' BLIP classes: sizes, published key names, loading."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scorers.loading import build, read_state

SIZES_FILE = "sizes.json"
"""Sizes beside weights that we saved; the published folder has a med_config.json instead."""
NAMES = (
    ("blip.text_encoder.", "text."),
    ("blip.visual_encoder.cls_token", "vision.embeddings.class_embedding"),
    ("blip.visual_encoder.pos_embed", "vision.embeddings.position_embedding"),
    ("blip.visual_encoder.patch_embed.proj.", "vision.embeddings.patch_embedding."),
    ("blip.visual_encoder.blocks.{n}.norm1.", "vision.encoder.layers.{n}.layer_norm1."),
    ("blip.visual_encoder.blocks.{n}.norm2.", "vision.encoder.layers.{n}.layer_norm2."),
    ("blip.visual_encoder.blocks.{n}.attn.qkv.", "vision.encoder.layers.{n}.self_attn.qkv."),
    ("blip.visual_encoder.blocks.{n}.attn.proj.", "vision.encoder.layers.{n}.self_attn.projection."),
    ("blip.visual_encoder.blocks.{n}.mlp.", "vision.encoder.layers.{n}.mlp."),
    ("blip.visual_encoder.norm.", "vision.post_layernorm."),
)
"""Beginnings of published keys, and of the same keys in transformers' BLIP."""
UNUSED = ("*position_ids", "blip.vision_proj.*", "blip.text_proj.*")
"""Keys of the published file that take no part in the score."""


@dataclass(frozen=True, kw_only=True)
class BlipSizes:
    """Sizes of the towers; the defaults are BLIP-large's and BERT-base's, as published."""

    image_size: int = 224
    patch_size: int = 16
    vision_width: int = 1024
    vision_layers: int = 24
    vision_heads: int = 16
    vocab_size: int = 30524
    text_width: int = 768
    text_hidden: int = 3072
    text_layers: int = 12
    text_heads: int = 12
    positions: int = 512
    """Longest text that the position table holds, in tokens."""
    dropout: float = 0.1
    """Of the text tower while it is trained."""
    mean: float = 0.0
    """Taken off the raw reward."""
    std: float = 1.0
    """By which it is then divided."""

    @classmethod
    def read(cls, folder: Path, default: BlipSizes) -> BlipSizes:
        """Sizes of a folder's model, from sizes.json or med_config.json; the rest is ``default``'s.

        Raises:
            ValueError: the file is no JSON object, or names sizes that there are not.
        """
        ours, theirs = folder / SIZES_FILE, folder / "med_config.json"
        if ours.is_file():
            given = _json(ours)
            unknown = sorted(given.keys() - {f.name for f in fields(cls)})
            if unknown:
                raise ValueError(f"{ours}: unknown sizes {', '.join(unknown)}")
            return replace(default, **given)
        given = _json(theirs) if theirs.is_file() else {}
        return replace(default, **{ours: given[key] for key, ours in MED_CONFIG.items() if key in given})

    def write(self, folder: Path) -> None:
        """Write sizes.json."""
        (folder / SIZES_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")


MED_CONFIG = {
    "vocab_size": "vocab_size",
    "hidden_size": "text_width",
    "intermediate_size": "text_hidden",
    "num_hidden_layers": "text_layers",
    "num_attention_heads": "text_heads",
    "max_position_embeddings": "positions",
    "hidden_dropout_prob": "dropout",
}
"""Entries of the published med_config.json. Its encoder_width is overruled by the picture tower's."""


class BlipRegressor(nn.Module):
    """Prompt tokens that attend to picture tokens; an MLP on the first of them gives the raw reward."""

    def __init__(self, sizes: BlipSizes) -> None:
        """Build with random weights."""
        from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

        super().__init__()
        self.vision = BlipVisionModel(
            BlipVisionConfig(
                hidden_size=sizes.vision_width,
                intermediate_size=4 * sizes.vision_width,
                num_hidden_layers=sizes.vision_layers,
                num_attention_heads=sizes.vision_heads,
                image_size=sizes.image_size,
                patch_size=sizes.patch_size,
                layer_norm_eps=1e-6,
            )
        )
        self.text = BlipTextModel(
            BlipTextConfig(
                vocab_size=sizes.vocab_size,
                hidden_size=sizes.text_width,
                encoder_hidden_size=sizes.vision_width,
                intermediate_size=sizes.text_hidden,
                num_hidden_layers=sizes.text_layers,
                num_attention_heads=sizes.text_heads,
                max_position_embeddings=sizes.positions,
                layer_norm_eps=1e-12,
                bos_token_id=None,
                sep_token_id=None,
                hidden_dropout_prob=sizes.dropout,
                attention_probs_dropout_prob=sizes.dropout,
            ),
            add_pooling_layer=False,
        )
        self.mlp = RewardMLP(sizes.text_width)

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Raw rewards (B,) float32 of preprocessed pictures (B, 3, S, S), token ids and their mask (B, L)."""
        pixels = pixels.to(self.vision.post_layernorm.weight.dtype)
        tokens = self.vision(pixel_values=pixels).last_hidden_state  # (B, P, vision_width)
        seen = self.text(input_ids=ids, attention_mask=mask, encoder_hidden_states=tokens)
        with torch.autocast(pixels.device.type, enabled=False):
            out: Tensor = self.mlp(seen.last_hidden_state[:, 0].float())
        return out[:, 0]


class RewardMLP(nn.Module):
    """768 -> 1024 -> 128 -> 64 -> 16 -> 1 without activations: an affine map, with dropout in training.

    Weights start with a deviation of 1 / (width + 1), biases at 0, as published.
    """

    def __init__(self, width: int) -> None:
        """``width`` is that of the input."""
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 1024),
            nn.Dropout(0.2),
            nn.Linear(1024, 128),
            nn.Dropout(0.2),
            nn.Linear(128, 64),
            nn.Dropout(0.1),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=1 / (width + 1))
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width) to (B, 1)."""
        out: Tensor = self.layers(x)
        return out


def load_blip(folder: Path, sizes: BlipSizes) -> BlipRegressor:
    """Load the network of a folder, in float32; every key must be there and none may be left over.

    Raises:
        FileNotFoundError: the folder holds no weights.
        ValueError: they are damaged or do not fit.
    """
    state = {ours(key): tensor for key, tensor in read_state(folder).items()}
    blip = build(lambda: BlipRegressor(sizes), state, where=folder, ignore=UNUSED)
    blip.text.embeddings.position_ids = torch.arange(sizes.positions)[None]  # no checkpoint holds it
    return blip.float()


def ours(key: str) -> str:
    """Our key of a published one; others stay as they are."""
    return _renamed(key, [(theirs, mine) for theirs, mine in NAMES])


def published(key: str) -> str:
    """Published key of one of ours."""
    return _renamed(key, [(mine, theirs) for theirs, mine in NAMES])


def _renamed(key: str, names: list[tuple[str, str]]) -> str:
    for old, new in names:
        found = re.match(re.escape(old).replace(r"\{n\}", r"(?P<n>\d+)"), key)
        if found:
            return new.format(**found.groupdict()) + key[found.end() :]
    return key


def _json(file: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no JSON ({error}); copy it again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds a {type(found).__name__}; it must be an object of sizes")
    return found
