"""Qwen2-VL networks from local folders: configuration, key names of old and new checkpoints, precision."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from scorers.loading import build

M = TypeVar("M", bound=nn.Module)

KINDS = ("qwen2_vl", "qwen2_5_vl")
"""Model types of the configurations that are read."""
OLD_NAMES = (
    ("visual.", "model.visual."),
    ("model.layers.", "model.language_model.layers."),
    ("model.embed_tokens.", "model.language_model.embed_tokens."),
    ("model.norm.", "model.language_model.norm."),
)
"""Beginnings of the keys that checkpoints up to transformers 4.51 have, and what they are called now."""


def rename(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under today's key names; those that have them already keep them."""
    return {_renamed(key): tensor for key, tensor in state.items()}


def config_of(folder: Path, words: int) -> Any:
    """Configuration of a folder's model, for a vocabulary of so many tokens.

    Raises:
        FileNotFoundError: there is no config.json.
        ValueError: it is of another kind of model.
    """
    from transformers import AutoConfig

    file = folder / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} holds no config.json; put the Qwen2-VL model's there")
    try:
        kind = json.loads(file.read_text())["model_type"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no configuration of a model ({error!r}); copy it again") from error
    if kind not in KINDS:
        raise ValueError(f"{file} is of a {kind!r}; only {' and '.join(KINDS)} are read")
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    config.text_config.vocab_size = words
    return config


def build_qwen(
    make: Callable[[], M],
    state: Mapping[str, Tensor],
    *,
    where: Path,
    dtype: torch.dtype,
    ignore: tuple[str, ...] = (),
) -> M:
    """Build a network around a Qwen2-VL from renamed keys, its weights in ``dtype``.

    The rotary frequencies, which no checkpoint holds, are computed anew and stay in float32 whatever the
    precision of the weights: bfloat16 would shift far positions by several tokens.

    Raises:
        ValueError: keys are missing, unexpected or of another shape.
    """
    cast = {key: tensor.to(dtype) for key, tensor in state.items()}
    model = build(make, cast, where=where, ignore=ignore)
    for name, part in list(model.named_modules()):
        if any(buffer.is_meta for buffer in part.buffers(recurse=False)):
            model.set_submodule(name, type(part)(part.config))
    return model


def _renamed(key: str) -> str:
    for old, new in OLD_NAMES:
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key
