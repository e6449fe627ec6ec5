"""The trained UNet as a teacher of the MMDiT, and attention for few tokens on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


class Teacher:
    """The trained UNet, asked for velocities: what the MMDiT is to predict, without most of its noise.

    A VP latent a x0 + s eps is, divided by a + s, the flow's latent at sigma = s / (a + s), so one network
    can teach the other. Half of each target stays that of the data, so that the student's errors are not
    all of its teacher's.
    """

    def __init__(self, folder: Path) -> None:
        """Load the pipeline that the stage "unet" exported.

        Raises:
            FileNotFoundError: it has not been trained yet.
        """
        if not folder.exists():
            raise FileNotFoundError(
                f"{folder} is missing: train the stage 'unet' first, it teaches the MMDiT"
            )
        self.pipeline = DiffusionPipeline.from_pretrained(folder)
        for part in (self.pipeline.unet, self.pipeline.text_encoder):
            part.to(torch.float32).requires_grad_(False)
        a = self.pipeline.scheduler.alphas_cumprod.sqrt()
        s = (1 - a**2).sqrt()
        self.norm, self.sigma = a + s, s / (a + s)  # (T,) each, rising in sigma

    @torch.no_grad()
    def calm(self, target: Tensor, x: Tensor, sigma: Tensor, prompts: Sequence[str]) -> Tensor:
        """Mean of the (B, C, h, w) velocities ``target`` and the teacher's, where the teacher knows sigma."""
        known = (sigma >= self.sigma[0]) & (sigma <= self.sigma[-1])
        return torch.where(known, (target + self.velocity(x, sigma, prompts)) / 2, target)

    @torch.no_grad()
    def velocity(self, x: Tensor, sigma: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B, C, h, w) velocities at the flow's latents ``x``, at the nearest sigma that the teacher knows.

        Args:
            x: (B, C, h, w) latents (1 - sigma) x0 + sigma noise.
            sigma: (B, 1, 1, 1).
            prompts: of each latent.
        """
        t = (self.sigma - sigma.flatten()[:, None]).abs().argmin(1)
        norm, s = self.norm[t].view(-1, 1, 1, 1), self.sigma[t].view(-1, 1, 1, 1)
        text, _ = self.pipeline.encode_prompt(list(prompts), "cpu", 1, False)
        with torch.autocast("cpu", torch.bfloat16), short_attention(0):
            eps = self.pipeline.unet(x * norm, t, text).sample.float()
        x0 = (x - s * eps) / (1 - s)  # a = (1 - s) norm
        v: Tensor = eps - x0
        return v


def short_attention(length: int) -> AbstractContextManager[None]:
    """Plain attention for short texts: the CPU's flash attention is slower on them in half precision."""
    context: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH) if length < 64 else nullcontext()
    return context
