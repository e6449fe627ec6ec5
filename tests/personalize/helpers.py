"""Tiny adapters with two people, as if they had been trained."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch

from diffalign.personalize.adapter import BranchOptions, UserAdapter, add_users, save_adapter
from diffalign.personalize.encoders import make_options
from diffalign.personalize.users import Users
from tests.tiny import tiny_pipeline

TABLE = {"tokens": 4, "width": 24}
NAMES = ("anna", "ben")


def denoiser_of(pipe: Any) -> Any:
    return pipe.transformer if hasattr(pipe, "transformer") else pipe.unet


def float_pipeline(family: str) -> Any:
    pipe = tiny_pipeline(family)
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()  # without dropout
    return pipe.to(torch.float32)


@cache
def kept_pipeline(family: str) -> Any:
    """The same pipeline for all tests: whoever attaches something takes it off."""
    return float_pipeline(family)


def trained(denoiser: Any, rank: int = 0, encoder: str = "table", **options: Any) -> UserAdapter:
    """An adapter whose values are no longer zero."""
    torch.manual_seed(5)
    given = make_options(encoder, {**TABLE, **options})
    adapter = add_users(denoiser, given, BranchOptions(rank=rank, base="tiny"), people=len(NAMES))
    with torch.no_grad():
        for p in adapter.parameters():
            p.normal_()
    return adapter


def saved(family: str, folder: Path, rank: int = 0, **options: Any) -> Path:
    """Folder of a trained adapter of the tiny pipeline with its people."""
    adapter = trained(denoiser_of(tiny_pipeline(family)), rank, **options)
    save_adapter(adapter, folder)
    people = adapter.encoder.people.detach()
    Users(folder, "tokens" if people.ndim == 3 else "weights").add_all(dict(zip(NAMES, people, strict=True)))
    return folder


def latents(
    pipe: Any, prompts: list[str] | None = None, guidance: float = 3.0, start: int = 0
) -> torch.Tensor:
    """Latents of one step; picture i of a call starts from the same noise whatever stands beside it."""
    prompts = prompts or ["a red circle"]
    generators = [torch.Generator().manual_seed(start + i) for i in range(len(prompts))]
    return pipe(
        prompts, num_inference_steps=1, guidance_scale=guidance, generator=generators, output_type="latent",
        height=32, width=32,
    ).images  # fmt: skip
