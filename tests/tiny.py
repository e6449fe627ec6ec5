"""Pipelines of about 1 MB with random weights, for every family."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from diffalign.world.models import Widths, build_sd3_pipeline, build_sd_pipeline, build_vae, clip_tokenizer

WIDTHS = Widths(vae=(8, 8, 16, 16), unet=(16, 32), text=32, dit_layers=2, dit_heads=2, dit_head_dim=16)


def tiny_pipeline(family: str) -> Any:
    """Untrained pipeline of a family: sd, sd-v, sdxl or sd3."""
    torch.manual_seed(0)
    vae = build_vae(WIDTHS)
    vae.register_to_config(shift_factor=0.0, scaling_factor=0.8)
    if family == "sd3":
        return build_sd3_pipeline(vae, WIDTHS)
    if family == "sdxl":
        return _sdxl(vae)
    pipeline = build_sd_pipeline(vae, WIDTHS)
    if family == "sd-v":
        pipeline.scheduler.register_to_config(prediction_type="v_prediction")
    return pipeline


def tiny_folder(family: str, folder: Path) -> str:
    """Save a tiny pipeline and return its path."""
    path = folder / family
    if not path.exists():
        tiny_pipeline(family).save_pretrained(path)
    return str(path)


def _sdxl(vae: Any) -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    from diffalign.world.models import _clip_config

    tokenizer = clip_tokenizer()
    config = _clip_config(tokenizer, 16)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=8,
        out_channels=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=16,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
    )
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(config),
        text_encoder_2=CLIPTextModelWithProjection(config),
        tokenizer=tokenizer,
        tokenizer_2=clip_tokenizer(),
        unet=unet,
        scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
    )


class Brightness:
    """A judge of any picture, ``tests.tiny:Brightness``; world judges see nothing in an untrained model's."""

    def score_tensor(self, x01: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        return x01.mean((1, 2, 3))

    @classmethod
    def load(cls, weights: Path | None, *, device: str | torch.device, dtype: torch.dtype) -> Brightness:
        return cls()
