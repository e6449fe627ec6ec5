"""Policies without weights: published configurations on the meta device, for plans and counts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from diffalign.policy.base import Policy
from diffalign.policy.family import Family
from diffalign.policy.load import family_of
from diffalign.policy.lora import AdapterConfig

SD3: dict[str, Any] = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "out_channels": 16,
    "pos_embed_max_size": 192,
}
"""Transformer of Stable Diffusion 3 medium."""

PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "stable-diffusion-v1-5": (
        "StableDiffusionPipeline",
        {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    ),
    "stable-diffusion-2-1": (
        "StableDiffusionPipeline",
        {
            "sample_size": 96,
            "cross_attention_dim": 1024,
            "attention_head_dim": [5, 10, 20, 20],
            "use_linear_projection": True,
        },
    ),
    "stable-diffusion-xl-base-1.0": (
        "StableDiffusionXLPipeline",
        {
            "sample_size": 128,
            "block_out_channels": [320, 640, 1280],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "cross_attention_dim": 2048,
            "attention_head_dim": [5, 10, 20],
            "transformer_layers_per_block": [1, 2, 10],
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
    ),
    "stable-diffusion-3-medium-diffusers": (
        "StableDiffusion3Pipeline",
        SD3,
    ),
    "stable-diffusion-3.5-medium": (
        "StableDiffusion3Pipeline",
        SD3
        | {
            "pos_embed_max_size": 384,
            "dual_attention_layers": tuple(range(13)),
            "qk_norm": "rms_norm",
        },
    ),
}
"""Public configurations of the denoisers, by the last part of their hub id."""

ENCODERS: dict[str, tuple[int, ...]] = {
    "stable-diffusion-v1-5": (123_060_480, 83_653_863),
    "stable-diffusion-2-1": (340_387_840, 83_653_863),
    "stable-diffusion-xl-base-1.0": (123_060_480, 694_659_840, 83_653_863),
    "stable-diffusion-3-medium-diffusers": (123_650_304, 694_659_840, 4_762_310_656, 83_819_683),
    "stable-diffusion-3.5-medium": (123_650_304, 694_659_840, 4_762_310_656, 83_819_683),
}
"""Parameters of their text encoders and, last, of their VAE."""


def meta_policy(model: str, adapter: AdapterConfig | None, text_length: int) -> Policy:
    """Policy of a published model without its weights (meta device); it can be counted, not run.

    Raises:
        FileNotFoundError: the model is neither here nor among the published configurations.
    """
    name = model.rstrip("/").rsplit("/", 1)[-1]
    if name not in PUBLISHED:
        raise FileNotFoundError(
            f"no diffusers pipeline at {model!r}, and its sizes are not known without it (known: "
            f"{', '.join(PUBLISHED)})"
        )
    pipeline_class, config = PUBLISHED[name]
    family = family_of(pipeline_class)
    with torch.device("meta"):
        denoiser = _denoiser(family, config)
        others = {f"encoder{i}": _weights(n) for i, n in enumerate(ENCODERS[name])}
    return Policy(_Parts(family.component, denoiser, others), family, adapter, text_length)


def _weights(count: int) -> nn.Module:
    """Stand-in for a network of so many parameters."""
    module = nn.Module()
    module.register_parameter("weight", nn.Parameter(torch.empty(count)))
    return module


def _denoiser(family: Family, config: dict[str, Any]) -> Any:
    from diffusers import SD3Transformer2DModel, UNet2DConditionModel

    cls = UNet2DConditionModel if family.component == "unet" else SD3Transformer2DModel
    return cls.from_config(config)


class _Parts:
    """As much of a pipeline as a Policy touches before it runs."""

    vae_scale_factor = 8

    def __init__(self, component: str, denoiser: Any, others: dict[str, nn.Module]) -> None:
        self.components = {component: denoiser, **others}
        self.scheduler = SimpleNamespace(
            config={"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
        )
        setattr(self, component, denoiser)
