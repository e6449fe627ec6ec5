"""What differs between model families: call signature, conditioning, LoRA targets. One small adapter each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from diffalign.diffusion.process import Process
from diffalign.registry import Registry

Cond = dict[str, Tensor]


class Family(ABC):
    """Adapter of one model family; stateless, works on the pipeline it is given."""

    name: ClassVar[str]
    pipelines: ClassVar[tuple[str, ...]]
    """Class names of the diffusers pipelines that belong to the family."""
    component: ClassVar[str]
    """Name of the network that is trained: unet or transformer."""
    lora_targets: ClassVar[tuple[str, ...]]
    """Module names that get LoRA by default (attention)."""
    block_classes: ClassVar[tuple[str, ...]]
    """Classes that repeat, for regional compilation and FSDP wrapping."""

    @abstractmethod
    def process(self, pipeline: Any) -> Process:
        """Noise process that the pipeline's scheduler was configured for."""

    @abstractmethod
    def encode_prompts(self, pipeline: Any, prompts: Sequence[str], text_length: int) -> list[Cond]:
        """One dict of CPU tensors per prompt, without a batch dimension."""

    def encode_segments(self, pipeline: Any, texts: Sequence[str], text_length: int) -> list[Cond]:
        """CLIP's part alone of ``encode_prompts``, for texts that fit its window; see long_prompts.py.

        The embedding of an empty text is never replaced by zeros.

        Raises:
            ValueError: the family has no CLIP text encoder.
        """
        raise ValueError(
            f"long prompts are for text encoders of the CLIP type, which {self.name} lacks: set "
            "policy.long_prompts=null"
        )

    def whole_text(self, pipeline: Any, prompts: Sequence[str], text_length: int) -> Tensor | None:
        """(B, T, D) fp32 embeddings of whole prompts, on the CPU, that follow those of CLIP, if any do."""
        return None

    @abstractmethod
    def call(
        self, denoiser: nn.Module, x_t: Tensor, time: Tensor, cond: Cond, sizes: Tensor | None
    ) -> Tensor:
        """Raw prediction (B, C, h, w) of (B, C, h, w) latents at (B,) model times."""

    def zero_unconditional(self, pipeline: Any) -> bool:
        """Whether the pipeline samples with zeros, not with the embedding of "", where there is no prompt."""
        return False

    def collate(self, rows: Sequence[Cond]) -> Cond:
        """Stack per-prompt dicts to (B, ...) tensors; SD, SDXL and SD3 use fixed lengths, so nothing is
        padded.
        """
        return {k: torch.stack([r[k] for r in rows]) for k in rows[0]}

    def generate_options(self, pipeline: Any, text_length: int) -> dict[str, Any]:
        """Extra arguments of the pipeline's call."""
        return {}


families: Registry[type[Family]] = Registry("family", package="diffalign.policy")


def split_rows(tensors: dict[str, Tensor]) -> list[Cond]:
    """Turn (B, ...) tensors into B dicts on the CPU in fp32."""
    n = len(next(iter(tensors.values())))
    return [{k: v[i].detach().float().cpu() for k, v in tensors.items()} for i in range(n)]


def vp_process(scheduler_config: Any) -> Process:
    """Process of a scheduler configuration of the VP kind (betas or trained_betas, optional zero terminal
    SNR).

    Raises:
        ValueError: a prediction type that is not epsilon, v_prediction or sample.
    """
    from diffusers import DDPMScheduler

    kinds: dict[str, Any] = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
    given = scheduler_config.get("prediction_type", "epsilon")
    if given not in kinds:
        raise ValueError(f"the scheduler's prediction_type is {given!r}; diffalign knows {', '.join(kinds)}")
    scheduler = DDPMScheduler.from_config(scheduler_config)
    return Process(prediction=kinds[given], alphas_cumprod=scheduler.alphas_cumprod)
