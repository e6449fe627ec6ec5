"""Where the MMDiT errs more than the UNet: velocity errors of both by noise level, on the same latents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from diffalign.world.grammar import sample_prompts
from diffalign.world.shapes import draw
from diffalign.world.teacher import Teacher

SIGMAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 0.9)


@torch.no_grad()
def velocity_errors(out: Path, pictures: int = 400) -> dict[str, dict[str, float]]:
    """Mean squared velocity errors, by sigma and then "unet" and "dit".

    Args:
        out: folder of both pipelines.
        pictures: fresh ones of held-out prompts, one noise each for every sigma.
    """
    rng, teacher = np.random.default_rng(321), Teacher(out / "unet")
    pipeline = DiffusionPipeline.from_pretrained(out / "dit").to(torch.float32)
    asked, vae = sample_prompts(pictures, rng, "heldout"), pipeline.vae
    prompts = [str(p) for p in asked]
    x0 = vae.encode(draw(asked, rng) * 2 - 1).latent_dist.mean * vae.config.scaling_factor
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    found = {}
    for value in SIGMAS:
        sigma = torch.full((len(x0), 1, 1, 1), value)
        x = (1 - sigma) * x0 + sigma * noise
        said = {
            "unet": teacher.velocity(x, sigma, prompts),
            "dit": dit_velocity(pipeline, x, sigma, prompts),
        }
        found[f"{value:g}"] = {name: float((v - (noise - x0)).square().mean()) for name, v in said.items()}
    return found


def dit_velocity(pipeline: DiffusionPipeline, x: Tensor, sigma: Tensor, prompts: Sequence[str]) -> Tensor:
    """(B, C, h, w) velocities of an SD3-type pipeline at (B, C, h, w) latents and (B, 1, 1, 1) sigmas."""
    text, _, pooled, _ = pipeline.encode_prompt(
        list(prompts), None, None, do_classifier_free_guidance=False, max_sequence_length=32
    )
    v: Tensor = pipeline.transformer(
        hidden_states=x,
        timestep=sigma.flatten() * 1000,
        encoder_hidden_states=text,
        pooled_projections=pooled,
    ).sample
    return v
