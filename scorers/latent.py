"""Scorers of noisy latents: what one is, and where their networks are registered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from scorers.protocol import Described
from scorers.registry import Registry


@runtime_checkable
class LatentScorer(Described, Protocol):
    """A reward model that looks at latents inside the denoising process: any object with these attributes.

    Attributes mean what they mean in ``scorers.protocol.Scorer``; ``space`` is ``"latent"`` and the needs
    hold ``"timestep"``.
    """

    def score_latents(self, latents: Tensor, timesteps: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score B latents: (B,) float32, differentiable in the latents; frozen, in evaluation mode.

        Args:
            latents: (B, C, h, w) noisy latents, in the scale in which the diffusion model sees them.
            timesteps: (B,) timesteps of that model at which they are.
            prompts: B prompts.
        """
        ...


class LatentLoader(Protocol):
    """What is registered under a latent scorer's name: usually the class, with ``load`` as a class method."""

    def load(self, weights: Path | None, *, device: str | torch.device, dtype: torch.dtype) -> LatentScorer:
        """Load the scorer from local weights onto a device. Never uses the network."""
        ...


latent_scorers: Registry[LatentLoader] = Registry(
    "latent scorer", package="scorers", entry_points="scorers.latent"
)
"""Latent scorers by name: ``@latent_scorers.register("lrm")``, or entry points in ``scorers.latent``."""


def load_latent(
    name: str,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LatentScorer:
    """Load a latent scorer, as ``scorers.load`` does with scorers of pictures.

    Raises:
        RegistryError: no latent scorer has this name.
        FileNotFoundError: the weights are not there.
        TypeError: what was loaded is no latent scorer.
    """
    from scorers import find_weights

    scorer = latent_scorers.get(name).load(find_weights(name, weights), device=device, dtype=dtype)
    if not isinstance(scorer, LatentScorer) or scorer.space != "latent" or "timestep" not in scorer.needs:
        raise TypeError(
            f"{name!r} gave a {type(scorer).__name__}; a latent scorer has space 'latent', needs "
            "'timestep' and has score_latents(latents, timesteps, prompts)"
        )
    return scorer


def check_latents(latents: Tensor, timesteps: Tensor, prompts: Sequence[str]) -> None:
    """Check the arguments of ``score_latents``.

    Raises:
        ValueError: not (B, C, h, w) floats, not B timesteps, or not B prompts.
    """
    if latents.ndim != 4 or not latents.is_floating_point():
        raise ValueError(f"latents must be floats (B, C, h, w), got {tuple(latents.shape)} {latents.dtype}")
    if timesteps.shape != latents.shape[:1]:
        raise ValueError(f"{len(latents)} latents need as many timesteps, got {tuple(timesteps.shape)}")
    if isinstance(prompts, str) or len(prompts) != len(latents):
        count = "one string" if isinstance(prompts, str) else f"{len(prompts)} prompts"
        raise ValueError(f"{len(latents)} latents need a list of as many prompts, got {count}")
