"""Digests by which pictures, embeddings and errors are found again: of weights, of tokenizers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffalign.policy.lora import adapter_parameters, tuner_layers
from diffalign.policy.people import ENCODER


def tokenizers_digest(pipeline: Any) -> str:
    """Start of the sha256 over all tokenizers: the same weights read another vocabulary as other prompts."""
    digest = hashlib.sha256()
    for name in sorted(n for n in pipeline.components if n.startswith("tokenizer")):
        tokenizer = getattr(pipeline, name)
        if tokenizer is not None:
            rules = json.loads(tokenizer.backend_tokenizer.to_str())
            kept = {k: v for k, v in rules.items() if k not in ("padding", "truncation")}  # set by each call
            digest.update(json.dumps([kept, tokenizer.model_max_length], sort_keys=True).encode())
    return digest.hexdigest()[:16]


def weights_digest(modules: Sequence[nn.Module], adapters: Sequence[str] = ()) -> str:
    """sha256 over parameter names, shapes and values (as fp32) of modules; buffers are left out.

    Of their LoRA only ``adapters`` count, with the factors that they are multiplied by. What a policy has of
    people is left out: nobody is in the reference, the base and the pictures that these digests stand for.
    """
    digest = hashlib.sha256()
    for module in modules:
        plain = {
            k.replace(".base_layer.", "."): v
            for k, v in module.state_dict().items()
            if ".lora_" not in k and not k.startswith(f"{ENCODER}.") and ".processor.users." not in k
        }
        for name, value in sorted({**plain, **_adapter_tensors(module, adapters)}.items()):
            digest.update(f"{name}{tuple(value.shape)}".encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _adapter_tensors(module: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    """Weights of adapters by their full names, and their factors by layer."""
    found: dict[str, Tensor] = {}
    for name in names:
        found |= adapter_parameters(module, name)
        factors = [float(layer.scaling[name]) for layer in tuner_layers(module) if name in layer.scaling]
        found |= {f"{name}.lora_scaling": torch.tensor(factors)} if factors else {}
    return found
