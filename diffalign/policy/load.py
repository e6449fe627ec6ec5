"""Loading a policy from a local diffusers folder (or, when allowed, from the hub)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from diffalign.assets import asset
from diffalign.policy.base import Policy
from diffalign.policy.family import Family, families
from diffalign.policy.lora import AdapterConfig


def load_policy(
    model: str,
    adapter: AdapterConfig | Mapping[str, Any] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    text_length: int = 32,
    allow_download: bool = False,
) -> Policy:
    """Load a diffusers pipeline as a Policy.

    Args:
        model: local folder with a model_index.json, or a hub id when ``allow_download``.
        adapter: options of the LoRA to train (``{"rank": 8}``), or None to train all weights.
        dtype: dtype of the weights; the VAE never goes below bf16.
        text_length: T5 tokens of SD3-type models (32 for samples/shapes, 256 for the released SD3).
        allow_download: whether a hub id may be fetched; off by default, nothing else ever touches the
        network.

    Raises:
        FileNotFoundError: no pipeline at ``model``.
        ValueError: a pipeline of a family that diffalign does not know.
    """
    pipeline = load_pipeline(model, dtype=dtype, allow_download=allow_download)
    config = AdapterConfig(**adapter) if isinstance(adapter, Mapping) else adapter
    return Policy(pipeline, family_of(type(pipeline).__name__), config, text_length)


def load_pipeline(model: str, *, dtype: torch.dtype = torch.float32, allow_download: bool = False) -> Any:
    """Load a diffusers pipeline without touching the network unless allowed; see load_policy."""
    from diffusers import DiffusionPipeline

    path = _locate(model, allow_download)
    pipeline = DiffusionPipeline.from_pretrained(path, dtype=dtype, local_files_only=not allow_download)
    if dtype == torch.float16:
        pipeline.vae.to(torch.float32)  # fp16 VAEs of SD and SDXL overflow to black pictures
    return pipeline


def _locate(model: str, allow_download: bool) -> str:
    try:
        folder = asset(model)
    except FileNotFoundError:
        folder = Path(model)
    if (folder / "model_index.json").exists():
        return str(folder)
    if allow_download and not folder.exists():
        return model
    raise FileNotFoundError(
        f"no diffusers pipeline at {model!r}: a folder with model_index.json is needed"
        " (policy.allow_download=true lets diffalign fetch a hub id)"
    )


def family_of(pipeline_class: str) -> Family:
    """Find the family of a diffusers pipeline class by its name.

    Raises:
        ValueError: no family knows it; the message lists those that are known.
    """
    for name in families.names():
        family = families.get(name)
        if pipeline_class in family.pipelines:
            return family()
    known = sorted(p for n in families.names() for p in families.get(n).pipelines)
    raise ValueError(f"{pipeline_class} belongs to no family that diffalign knows ({', '.join(known)})")
