"""Weights from local files into models: tensors only, every key accounted for."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from scorers import WEIGHTS_VARIABLE

M = TypeVar("M", bound=nn.Module)

PICKLED = (".bin", ".pt", ".pth", ".ckpt")
"""Endings of files that torch.save wrote; they are read as tensors only."""
SHOWN = 8
"""How many keys of each kind an error names."""


def need_weights(name: str, weights: Path | None, what: str) -> Path:
    """Path of a scorer's weights, which it cannot do without.

    Args:
        name: of the scorer.
        weights: what ``scorers.load`` found.
        what: what is wanted, e.g. ``"a folder with a saved CLIPModel and its tokenizer"``.

    Raises:
        FileNotFoundError: ``weights`` is None; the message names the environment variable and the folder in
            it that was looked for, and the repository of the hub that has them.
    """
    if weights is not None:
        return weights
    from scorers.hub import sources

    files = " and ".join(map(str, sources(name)))
    allowed = f" unless you allow it: {files} (allow_hub=True, --allow-hub)" if files else ""
    home = os.environ.get(WEIGHTS_VARIABLE)
    looked = f"there is no {Path(home) / name}" if home else f"{WEIGHTS_VARIABLE} is not set"
    raise FileNotFoundError(
        f"scorer {name!r} needs weights: pass weights=PATH ({what}), or put them into "
        f"${WEIGHTS_VARIABLE}/{name} ({looked}); nothing is downloaded{allowed}"
    )


def need_folder(name: str, weights: Path | None, what: str) -> Path:
    """The same where several files stay together.

    Raises:
        FileNotFoundError: nothing given or found, or a single file.
    """
    folder = need_weights(name, weights, what)
    if not folder.is_dir():
        raise FileNotFoundError(f"scorer {name!r}: {folder} is no folder; it takes a {what}")
    return folder


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a checkpoint: a file, or a folder with one file or with shards and their index.

    ``.safetensors`` are preferred; ``.bin``, ``.pt``, ``.pth`` and ``.ckpt`` are read with
    ``weights_only=True``. A dictionary ``{"state_dict": ...}`` around the tensors is taken off.

    Args:
        path: file or folder.

    Returns:
        Tensors by key, on the CPU, in the precision of the file.

    Raises:
        FileNotFoundError: the file, or a shard, is not there; or the folder holds no weights.
        ValueError: the file is damaged, holds Python objects besides tensors, or several files of a folder
            could be meant.
    """
    state: dict[str, Tensor] = {}
    for file in _files(path):
        state |= _tensors(_read(file), file)
    return state


def build(
    make: Callable[[], M], state: Mapping[str, Tensor], *, where: Path, ignore: Sequence[str] = ()
) -> M:
    """Build a model on the meta device and give it the tensors of a checkpoint: no time for random weights.

    Buffers that are not saved (``persistent=False``) stay on the meta device; the caller restores them.

    Args:
        make: builds the model.
        state: its tensors; floats keep their precision.
        where: where they come from, for errors.
        ignore: patterns (``*position_ids``) of keys that old checkpoints have and the model does not need.

    Raises:
        ValueError: keys are missing, unexpected or of another shape; the message lists them.
    """
    with torch.device("meta"):
        model = make()
    wanted = model.state_dict()
    given = {k: v for k, v in state.items() if k in wanted or not any(fnmatchcase(k, p) for p in ignore)}
    problem = _misfit(given, wanted)
    if problem:
        raise ValueError(f"{where} does not hold the weights of this {type(model).__name__}: {problem}")
    model.load_state_dict(given, strict=True, assign=True)
    return model


def _misfit(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """What is wrong with the keys and shapes, or nothing."""
    missing, unexpected = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    shapes = [
        f"{k} is {tuple(given[k].shape)} and should be {tuple(v.shape)}"
        for k, v in wanted.items()
        if k in given and given[k].shape != v.shape
    ]
    parts = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    text = "; ".join(f"{len(keys)} keys {kind} ({_some(keys)})" for kind, keys in parts if keys)
    if wanted and len(missing) == len(wanted):
        text += "; no key fits, so this is the checkpoint of another model"
    return text


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:SHOWN]) + (", ..." if len(keys) > SHOWN else "")


def _files(path: Path) -> list[Path]:
    """The file or files that make up a checkpoint."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"there are no weights at {path} (nothing is downloaded)")
    for stem in ("model.safetensors", "pytorch_model.bin"):
        index = path / f"{stem}.index.json"
        if index.is_file():
            return [path / shard for shard in sorted(set(_index(index).values()))]
        if (path / stem).is_file():
            return [path / stem]
    found = sorted(f for f in path.iterdir() if f.suffix in (".safetensors", *PICKLED))
    if not found:
        raise FileNotFoundError(
            f"{path} holds no weights: neither model.safetensors nor pytorch_model.bin nor another file in "
            f".safetensors, {', '.join(PICKLED)}"
        )
    if len(found) > 1:
        raise ValueError(f"{path} holds {', '.join(f.name for f in found)}; give the path of the one meant")
    return found


def _index(file: Path) -> dict[str, str]:
    try:
        found: dict[str, str] = json.loads(file.read_text())["weight_map"]
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no index of shards ({error!r}); copy it again") from error
    return found


def _read(file: Path) -> Any:
    """Content of one file; nothing in it is ever executed."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"{file} is missing; it belongs to the checkpoint") from None
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{file} is damaged or holds Python objects besides tensors, which could run code and are never "
            "loaded; convert it to safetensors on a machine where you trust it"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, KeyError) as error:
        if "TorchScript" in str(error):
            raise ValueError(
                f"{file} is a TorchScript program, which could run code; take the same weights "
                "in another layout (open_clip's or transformers')"
            ) from None
        raise ValueError(f"the weights in {file} are damaged ({error}); copy them again") from error


def _tensors(found: Any, file: Path) -> dict[str, Tensor]:
    """Take off a wrapper and see that nothing but tensors is left."""
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping):
        raise ValueError(f"{file} holds a {type(found).__name__}, not a dictionary of tensors")
    other = [str(k) for k, v in found.items() if not isinstance(v, Tensor)]
    if other:
        raise ValueError(f"{file} holds entries that are no tensors ({_some(other)}); give the weights alone")
    return {str(k): v for k, v in found.items()}
