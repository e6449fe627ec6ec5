"""UNet families: Stable Diffusion 1.x and 2.x, and SDXL with its micro-conditioning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from diffalign.diffusion.process import Process
from diffalign.policy.family import Cond, Family, families, split_rows, vp_process
from diffalign.policy.people import person


@families.register("sd")
class StableDiffusion(Family):
    """SD1.x (eps) and SD2.x (eps or v): one CLIP text encoder, cross-attention."""

    name: ClassVar[str] = "sd"
    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusionPipeline",)
    component: ClassVar[str] = "unet"
    lora_targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    block_classes: ClassVar[tuple[str, ...]] = ("BasicTransformerBlock", "ResnetBlock2D")

    def process(self, pipeline: Any) -> Process:
        """See Family."""
        return vp_process(pipeline.scheduler.config)

    @torch.no_grad()
    def encode_prompts(self, pipeline: Any, prompts: Sequence[str], text_length: int) -> list[Cond]:
        """{"text": (77, D)} per prompt; CLIP's padding tokens are part of what the UNet was trained on."""
        text, _ = pipeline.encode_prompt(list(prompts), pipeline.text_encoder.device, 1, False)
        return split_rows({"text": text})

    def encode_segments(self, pipeline: Any, texts: Sequence[str], text_length: int) -> list[Cond]:
        """See Family."""
        return self.encode_prompts(pipeline, texts, text_length)

    def call(
        self, denoiser: nn.Module, x_t: Tensor, time: Tensor, cond: Cond, sizes: Tensor | None
    ) -> Tensor:
        """See Family."""
        out: Tensor = denoiser(
            x_t,
            time,
            encoder_hidden_states=cond["text"].to(x_t.dtype),
            cross_attention_kwargs=person(cond),
            return_dict=False,
        )[0]
        return out


@families.register("sdxl")
class StableDiffusionXL(StableDiffusion):
    """SDXL: two text encoders, pooled text, and the true size, crop and target size of each image."""

    name: ClassVar[str] = "sdxl"
    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusionXLPipeline",)

    @torch.no_grad()
    def encode_prompts(self, pipeline: Any, prompts: Sequence[str], text_length: int) -> list[Cond]:
        """{"text": (77, D1 + D2), "pooled": (D2,)} per prompt; zeros for "" where sampling uses zeros.

        Training on dropped prompts then meets the unconditional input that guidance will use.
        """
        rows = self.encode_segments(pipeline, prompts, text_length)
        if not self.zero_unconditional(pipeline):
            return rows
        zeros = [{k: torch.zeros_like(v) for k, v in row.items()} for row in rows]
        return [zero if p == "" else row for p, row, zero in zip(prompts, rows, zeros, strict=True)]

    @torch.no_grad()
    def encode_segments(self, pipeline: Any, texts: Sequence[str], text_length: int) -> list[Cond]:
        """See Family."""
        text, _, pooled, _ = pipeline.encode_prompt(
            list(texts), device=pipeline.text_encoder_2.device, do_classifier_free_guidance=False
        )
        return split_rows({"text": text, "pooled": pooled})

    def zero_unconditional(self, pipeline: Any) -> bool:
        """See Family."""
        return bool(pipeline.config.get("force_zeros_for_empty_prompt", False))

    def call(
        self, denoiser: nn.Module, x_t: Tensor, time: Tensor, cond: Cond, sizes: Tensor | None
    ) -> Tensor:
        """See Family; ``sizes`` is (B, 6): original height and width, crop top and left, target height and
        width.
        """
        if sizes is None:
            raise ValueError(
                "SDXL needs the sizes of the images (B, 6): its micro-conditioning is part of the model"
            )
        added = {"text_embeds": cond["pooled"].to(x_t.dtype), "time_ids": sizes.to(x_t.dtype)}
        out: Tensor = denoiser(
            x_t,
            time,
            encoder_hidden_states=cond["text"].to(x_t.dtype),
            added_cond_kwargs=added,
            cross_attention_kwargs=person(cond),
            return_dict=False,
        )[0]
        return out
