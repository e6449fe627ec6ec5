"""Paired generation: the same prompts, seeds, sampler and guidance for every model; the base's pictures are
kept.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from diffalign.diffusion.corrupt import draw_seed
from diffalign.policy import Policy

Progress = Callable[[int], None]
Noise = Literal["own", "shared"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How pictures are made; equal for all models that are compared."""

    steps: int = 20
    """Sampling steps."""
    guidance: float = 4.0
    """Classifier-free guidance."""
    side: int | None = None
    """Side in pixels; None takes the model's own."""
    batch: int = 32
    """Pictures at once; a picture does not depend on it, for each has its own generator."""
    noise: Noise = "own"
    """Initial noise of seed 3, say: ``own`` differs from prompt to prompt, so that pictures are independent;
    ``shared`` is that of ``torch.Generator().manual_seed(3)`` for all, so that seeds can be compared."""


def picture_seed(prompt: str, seed: int, noise: Noise = "own") -> int:
    """Seed of one picture: by its prompt's text and its number, so never by its place in a list."""
    return seed if noise == "shared" else draw_seed("picture", prompt, seed)


def generate(
    policy: Policy,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: Sampling,
    progress: Progress = lambda n: None,
) -> Tensor:
    """(P, S, 3, H, W) uint8 pictures of P prompts, each with S seeds; ``progress`` gets each number made."""
    jobs = [(p, picture_seed(p, s, sampling.noise)) for p in prompts for s in seeds]
    parts = []
    for i in range(0, len(jobs), sampling.batch):
        some = jobs[i : i + sampling.batch]
        pictures = policy.generate(
            [p for p, _ in some],
            [s for _, s in some],
            steps=sampling.steps,
            guidance=sampling.guidance,
            side=sampling.side,
        )
        parts.append((pictures.clamp(0, 1) * 255).round().to(torch.uint8).cpu())
        progress(len(some))
    out: Tensor = torch.cat(parts).unflatten(0, (len(prompts), len(seeds)))
    return out


def generate_base(
    policy: Policy,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: Sampling,
    cache: Path,
    progress: Progress = lambda n: None,
) -> Tensor:
    """Pictures of the untrained base, like ``generate``; made once and kept in ``cache`` by content."""
    from safetensors.torch import load_file, save_file

    file = cache / "pictures" / f"{_base_key(policy, prompts, seeds, sampling)}.safetensors"
    if not file.exists():
        with policy.base():
            pictures = generate(policy, prompts, seeds, sampling, progress)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}.partial")
        save_file({"pictures": pictures.contiguous()}, partial)
        os.replace(partial, file)
    else:
        progress(len(prompts) * len(seeds))
    return load_file(file)["pictures"]


def _base_key(policy: Policy, prompts: Sequence[str], seeds: Sequence[int], sampling: Sampling) -> str:
    """Key of the base's pictures: all that decides them, the device's noise and arithmetic included."""
    what = [policy.base_id(), policy.encoder_id("vae"), policy.encoder_id("text"), list(prompts), list(seeds)]
    scheduler = policy.pipeline.scheduler
    settings = [sampling.steps, sampling.guidance, sampling.side, type(scheduler).__name__]
    settings.append(json.dumps(dict(scheduler.config), sort_keys=True, default=str))
    settings += ["shared"] if sampling.noise == "shared" else []
    parts = [what, settings, policy.device.type, str(policy.dtype)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
