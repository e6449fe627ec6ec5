"""Scorers that are a small head on the features of a frozen CLIP-type encoder: features, files."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from scorers.loading import need_weights, read_state
from scorers.pickscore import PickScore

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ENCODER, OPTIONS, HEAD = "encoder", "head.json", "head.safetensors"
"""A folder of such a scorer: the encoder's own folder, the head's options, the head's weights."""
WHAT = f"folder of your own training with {ENCODER}/ (a CLIPModel and its tokenizer), {OPTIONS} and {HEAD}"

O = TypeVar("O", bound="DataclassInstance")  # noqa: E741


def image_inputs(image: Tensor) -> Tensor:
    """(B, D) input of a head from unit features (B, D) of pictures: entries of about unit size."""
    return image * image.shape[1] ** 0.5


def joint_inputs(image: Tensor, text: Tensor) -> Tensor:
    """(B, 2D) input of a head: the picture's features, and their product with the prompt's, of unit size.

    Args:
        image: (B, D) unit features of pictures.
        text: (B, D) unit features of prompts.
    """
    d = image.shape[1]
    return torch.cat([image * d**0.5, image * text * d], 1)


def load_encoder(
    name: str, weights: Path | None, *, device: str | torch.device, dtype: torch.dtype
) -> tuple[PickScore, Path]:
    """Encoder of a scorer's folder, and the folder.

    Raises:
        FileNotFoundError: no folder given or found, or a file is missing in it.
        ValueError: the encoder's weights do not fit its configuration.
    """
    folder = need_weights(name, weights, WHAT)
    missing = [part for part in (ENCODER, OPTIONS, HEAD) if not (folder / part).exists()]
    if missing:
        raise FileNotFoundError(f"scorer {name!r}: {folder} lacks {', '.join(missing)}; it takes a {WHAT}")
    return PickScore.load(folder / ENCODER, device=device, dtype=dtype), folder


def read_options(kind: type[O], folder: Path, scorer: str) -> O:
    """Options of a head from its folder.

    Raises:
        ValueError: the file is of another scorer, is no JSON object, or names options that there are not.
    """
    file = folder / OPTIONS
    try:
        given = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no JSON ({error}); copy it again") from error
    if not isinstance(given, dict) or given.get("scorer") != scorer:
        of = given.get("scorer") if isinstance(given, dict) else None
        raise ValueError(f"{file} is of the scorer {of!r}; this one is {scorer!r}")
    unknown = sorted(given.keys() - {"scorer"} - {f.name for f in fields(kind)})
    if unknown:
        raise ValueError(f"{file}: unknown options {', '.join(unknown)}")
    return kind(**{k: v for k, v in given.items() if k != "scorer"})


def read_head(folder: Path) -> dict[str, Tensor]:
    """Weights of a head, in float32."""
    return {key: tensor.float() for key, tensor in read_state(folder / HEAD).items()}


def save_featured(
    folder: str | Path, scorer: str, encoder: PickScore, head: nn.Module, options: Mapping[str, Any]
) -> None:
    """Save encoder, options and head for the scorer's ``load``; the head is moved into place last, whole."""
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    encoder.save(folder / ENCODER)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as name:
        (Path(name) / OPTIONS).write_text(json.dumps({"scorer": scorer, **options}, indent=2) + "\n")
        state = {k: v.detach().cpu().float().contiguous() for k, v in head.state_dict().items()}
        save_file(state, Path(name) / HEAD)
        for file in (OPTIONS, HEAD):
            os.replace(Path(name) / file, folder / file)
