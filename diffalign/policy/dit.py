"""Transformer families: Stable Diffusion 3 and 3.5 (MMDiT, rectified flow)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from diffalign.diffusion.process import Process
from diffalign.policy.family import Cond, Family, families, split_rows
from diffalign.policy.people import person


@families.register("sd3")
class StableDiffusion3(Family):
    """SD3 and SD3.5: two CLIP towers and T5, joint attention, velocity prediction."""

    name: ClassVar[str] = "sd3"
    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusion3Pipeline",)
    component: ClassVar[str] = "transformer"
    lora_targets: ClassVar[tuple[str, ...]] = (
        "attn.to_q",
        "attn.to_k",
        "attn.to_v",
        "attn.to_out.0",
        "attn.add_q_proj",
        "attn.add_k_proj",
        "attn.add_v_proj",
        "attn.to_add_out",
    )
    block_classes: ClassVar[tuple[str, ...]] = ("JointTransformerBlock",)

    def process(self, pipeline: Any) -> Process:
        """See Family."""
        return Process(prediction="flow")

    @torch.no_grad()
    def encode_prompts(self, pipeline: Any, prompts: Sequence[str], text_length: int) -> list[Cond]:
        """{"text": (L_clip + text_length, D), "pooled": (P,)}; SD3 has no text mask, so padding is kept."""
        return self._encode(pipeline, prompts, prompts, text_length)

    def encode_segments(self, pipeline: Any, texts: Sequence[str], text_length: int) -> list[Cond]:
        """See Family; T5 is given nothing to read, and its part is left out."""
        rows = self._encode(pipeline, texts, [""] * len(texts), text_length)
        window = pipeline.tokenizer_max_length
        return [{"text": row["text"][:window], "pooled": row["pooled"]} for row in rows]

    def whole_text(self, pipeline: Any, prompts: Sequence[str], text_length: int) -> Tensor | None:
        """See Family: what T5 makes of them."""
        rows = self._encode(pipeline, [""] * len(prompts), prompts, text_length)
        return torch.stack([row["text"][pipeline.tokenizer_max_length :] for row in rows])

    def _encode(self, pipeline: Any, clip: Sequence[str], t5: Sequence[str], text_length: int) -> list[Cond]:
        """Embeddings of what the CLIP towers and T5 are each given to read."""
        text, _, pooled, _ = pipeline.encode_prompt(
            list(clip), None, list(t5), do_classifier_free_guidance=False, max_sequence_length=text_length
        )
        return split_rows({"text": text, "pooled": pooled})

    def call(
        self, denoiser: nn.Module, x_t: Tensor, time: Tensor, cond: Cond, sizes: Tensor | None
    ) -> Tensor:
        """See Family."""
        out: Tensor = denoiser(
            hidden_states=x_t,
            timestep=time,
            encoder_hidden_states=cond["text"].to(x_t.dtype),
            pooled_projections=cond["pooled"].to(x_t.dtype),
            joint_attention_kwargs=person(cond),
            return_dict=False,
        )[0]
        return out

    def generate_options(self, pipeline: Any, text_length: int) -> dict[str, Any]:
        """Text length of T5."""
        return {"max_sequence_length": text_length}
