"""Weights that users load: LoRA at its true strength, kohya files, full weights, merged pipelines, model
cards.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffalign.policy.base import Policy
from diffalign.policy.lora import ADAPTER, adapter_parameters

LORA_FILE = "pytorch_lora_weights.safetensors"


def lora_metadata(policy: Policy) -> dict[str, str]:
    """File metadata from which diffusers rebuilds the LoRA's configuration.

    Without it a LoRA whose alpha is not its rank reloads at the wrong strength (rank 4, alpha 8: at half).
    """
    config = getattr(policy.denoiser, "peft_config")[ADAPTER].to_dict()  # noqa: B009 (set by diffusers at run time)
    keep = ("r", "lora_alpha", "target_modules", "use_dora", "lora_bias", "rank_pattern", "alpha_pattern")
    plain = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items() if k in keep}
    packed = {f"{policy.family.component}.{k}": v for k, v in plain.items()}
    return {"format": "pt", "lora_adapter_metadata": json.dumps(packed, indent=2, sort_keys=True)}


def lora_state(policy: Policy) -> dict[str, Tensor]:
    """Tensors of the trained LoRA under the names that ``load_lora_weights`` reads."""
    prefix = policy.family.component
    parameters = adapter_parameters(policy.denoiser, ADAPTER)
    return {
        f"{prefix}.{k.replace(f'.{ADAPTER}.', '.')}": p.detach().cpu().contiguous()
        for k, p in parameters.items()
    }


def kohya_state(policy: Policy) -> dict[str, Tensor]:
    """Tensors of the trained LoRA under kohya's names, each module with its true alpha (SD1.x, SD2.x and
    SDXL).

    Raises:
        ValueError: the family has no kohya names.
    """
    if policy.family.component != "unet" or policy.adapter is None:
        raise ValueError("the kohya format is for LoRA on a UNet (SD1.x, SD2.x, SDXL)")
    alpha = float(policy.adapter.rank if policy.adapter.alpha is None else policy.adapter.alpha)
    state: dict[str, Tensor] = {}
    for key, value in lora_state(policy).items():
        module, _, side = key.removeprefix("unet.").rpartition(".lora_")
        name = f"lora_unet_{module.replace('.', '_')}"
        state[f"{name}.lora_{'down' if side.startswith('A') else 'up'}.weight"] = value
        state[f"{name}.alpha"] = torch.tensor(alpha)
    return state


def export_policy(policy: Policy, folder: Path, *, kohya: bool = False, card: str | None = None) -> Path:
    """Write the trained weights to ``folder``: a LoRA file, or unet/ or transformer/ for full training.

    The folder appears whole or not at all; an older export there is replaced.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if policy.adapter is None:
        _save_full(policy, partial)
    else:
        _save(lora_state(policy), partial / LORA_FILE, lora_metadata(policy))
    if kohya:
        _save(kohya_state(policy), partial / "kohya.safetensors", {"format": "pt"})
    if card is not None:
        (partial / "README.md").write_text(card)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    return folder


def merge(policy: Policy, folder: Path) -> Path:
    """Save a whole pipeline with the LoRA folded into its weights; loads anywhere without peft.

    The folder appears whole or not at all, and the policy stays as it is.

    Raises:
        ValueError: the policy has no LoRA.
        FileExistsError: ``folder`` holds something already.
    """
    if policy.adapter is None:
        raise ValueError("there is no LoRA to merge: full training is exported as it is")
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty: merging never overwrites, choose another folder")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    setattr(policy.pipeline, policy.family.component, _merged(policy))
    try:
        policy.pipeline.save_pretrained(partial)
    finally:
        setattr(policy.pipeline, policy.family.component, policy.denoiser)
    os.replace(partial, folder)
    return folder


def _merged(policy: Policy) -> Any:
    """Copy of the denoiser with its LoRA folded in."""
    denoiser: Any = deepcopy(policy.denoiser)
    denoiser.fuse_lora(adapter_names=[*policy.frozen_adapters, ADAPTER])
    denoiser.unload_lora()
    return denoiser


def model_card(title: str, base: str, settings: Mapping[str, Any], table: str, usage: str) -> str:
    """Markdown text of a model card: what it is, how to load it, how it was measured."""
    rows = "\n".join(f"* {k}: `{v}`" for k, v in settings.items())
    parts = [
        f"# {title}\n\nBase: `{base}`",
        f"## Use\n\n```python\n{usage}\n```",
        f"## Evaluation\n\n{table}",
        f"## Training\n\n{rows}",
    ]
    return "\n\n".join(parts) + "\n"


def _save(state: dict[str, Tensor], file: Path, metadata: dict[str, str]) -> None:
    from safetensors.torch import save_file

    save_file(state, file, metadata=metadata)


def _save_full(policy: Policy, folder: Path) -> None:
    denoiser: Any = policy.denoiser
    denoiser.save_pretrained(folder / policy.family.component)
