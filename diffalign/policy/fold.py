"""LoRAs folded into the weights while pictures are made: one product instead of three."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from diffalign.policy.lora import tuner_layers


@contextmanager
def folded(denoiser: nn.Module) -> Iterator[None]:
    """Fold the active LoRAs into fp32 weights inside; afterwards the weights are the very tensors of before.

    Half-precision weights would round the update away and keep it apart, as do kinds of LoRA whose update is
    more than a sum (DoRA).
    """
    layers = [layer for layer in tuner_layers(denoiser) if _foldable(layer)]
    kept = [(layer, layer._active_adapter, layer.base_layer.weight.data) for layer in layers]
    try:
        for layer, _, weight in kept:
            layer.base_layer.weight.data = weight + _update(layer)
            layer._active_adapter = []
        yield
    finally:
        for layer, active, weight in kept:
            layer.base_layer.weight.data = weight
            layer._active_adapter = active


def _foldable(layer: Any) -> bool:
    names = [n for n in layer.active_adapters if n in layer.lora_A]
    plain = not any(n in layer.lora_variant for n in names)
    whole = type(layer.base_layer.weight.data) is Tensor  # not a shard
    return bool(names) and plain and whole and layer.base_layer.weight.dtype == torch.float32


def _update(layer: Any) -> Tensor:
    """Sum of the active adapters' updates, in the weight's shape."""
    updates = [layer.get_delta_weight(n) for n in layer.active_adapters if n in layer.lora_A]
    out: Tensor = torch.stack(updates).sum(0) if len(updates) > 1 else updates[0]
    return out
