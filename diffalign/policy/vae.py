"""Pixels to latents and back, at the scale that a denoiser sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def encoded(vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance, see ``Policy.encode_images``."""
    weight = next(vae.parameters())
    moments = vae.encode(pixels.to(weight.device, weight.dtype)).latent_dist
    return moments.mean.float(), moments.logvar.float()


def scaled(vae: Any, latents: Tensor) -> Tensor:
    """Latents as the denoiser sees them, see ``Policy.scale_latents``."""
    config = vae.config
    if config.latents_mean is not None and config.latents_std is not None:
        mean, std = (_channels(v, latents) for v in (config.latents_mean, config.latents_std))
        return (latents - mean) * float(config.scaling_factor) / std
    out: Tensor = (latents - (config.shift_factor or 0.0)) * config.scaling_factor
    return out


def decoded(vae: Any, latents: Tensor) -> Tensor:
    """Pixels, see ``Policy.decode``."""
    config = vae.config
    if config.latents_mean is not None and config.latents_std is not None:
        mean, std = (_channels(v, latents) for v in (config.latents_mean, config.latents_std))
        unscaled = latents * std / config.scaling_factor + mean
    else:
        unscaled = latents / config.scaling_factor + (config.shift_factor or 0.0)
    pixels: Tensor = vae.decode(unscaled.to(next(vae.parameters()).dtype), return_dict=False)[0]
    return pixels.float()


def _channels(values: Sequence[float], like: Tensor) -> Tensor:
    """(1, C, 1, 1) tensor of one number per latent channel."""
    return torch.tensor(values, device=like.device, dtype=like.dtype).view(1, -1, 1, 1)
