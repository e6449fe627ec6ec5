"""Take the tensors out of a pickled module without running any of its code, once, to save them safely."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

REBUILT = {
    "builtins": ("set",),
    "__builtin__": ("set",),
    "collections": ("OrderedDict",),
    "torch": ("Size", "device"),
    "torch._utils": ("_rebuild_tensor_v2", "_rebuild_parameter"),
}
"""What is really called: constructors of torch and of the standard library that can only make data."""


class Inert:
    """Stands for every other class and function of the file: takes whatever it is given and does nothing."""

    def __new__(cls, *arguments: object, **named: object) -> Inert:
        """Make an empty object, whatever the constructor was given."""
        return super().__new__(cls)

    def __init__(self, *arguments: object, **named: object) -> None:
        """Ignore the arguments."""

    def append(self, item: object) -> None:
        """Ignore an item of a list."""

    def __setitem__(self, key: object, value: object) -> None:
        """Ignore an item of a dictionary."""


class Unpickler(pickle.Unpickler):
    """Unpickler that knows tensors, and stands-in for the rest."""

    def find_class(self, module: str, name: str) -> Any:
        """Look a name of the file up: the real thing if it makes data only, else ``Inert``."""
        plain = name in REBUILT.get(module, ()) or (module == "torch" and _is_data(name))
        return super().find_class(module, name) if plain else Inert


def read_pickled_module(path: Path) -> dict[str, Tensor]:
    """State dict of a file in which torch.save stored a whole module (as MPS is published).

    The module's classes need not exist, and nothing that the file names is called but the
    constructors in ``REBUILT`` and tensors' storages. Persistent buffers are included.

    Args:
        path: file written by torch.save in its zip format (torch 1.6 and later).

    Returns:
        Tensors by key, on the CPU.

    Raises:
        ValueError: the file is damaged, or holds no module.
    """
    shim: Any = _Module()
    try:
        found = torch.load(path, map_location="cpu", pickle_module=shim, weights_only=False)
    except (RuntimeError, EOFError, pickle.UnpicklingError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"{path} is damaged, or is no module that torch.save wrote ({error})") from error
    state = dict(_tensors(found, ""))
    if not state:
        raise ValueError(f"{path} holds no module with weights; plain state dicts need no conversion")
    return state


def convert_pickled_module(source: str | Path, target: str | Path) -> Path:
    """Write the weights of a pickled module as safetensors, which every loader here reads. Returns the file.

    Example: ``convert_pickled_module("MPS_overall_checkpoint.pth", "mps.safetensors")``.

    Raises:
        FileExistsError: there is something at the target.
        ValueError: see ``read_pickled_module``, or the target is no ``.safetensors`` file.
    """
    from safetensors.torch import save_file

    target = Path(target)
    if target.suffix != ".safetensors":
        raise ValueError(f"the target must be a .safetensors file, not {target}")
    if target.exists():
        raise FileExistsError(f"{target} exists and is not overwritten: name another file")
    state = read_pickled_module(Path(source))
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {k: v.detach().clone().contiguous() for k, v in state.items()}, target, metadata={"format": "pt"}
    )
    return target


class _Module:
    """What torch.load asks of a pickle module."""

    __name__ = "scorers.pickled"
    Unpickler = Unpickler
    UnpicklingError = pickle.UnpicklingError

    @staticmethod
    def load(*arguments: object, **named: object) -> object:
        """torch's format from before 1.6 is read by this, and not here."""
        raise pickle.UnpicklingError(
            "it is in torch's format from before 1.6; save it again with a newer torch"
        )


def _is_data(name: str) -> bool:
    """Whether a name of torch is a storage or a number format."""
    if "." in name:  # a path into torch could lead anywhere
        return False
    return name.endswith("Storage") or isinstance(getattr(torch, name, None), torch.dtype)


def _tensors(module: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Keys and tensors of a module's stand-in, as ``state_dict`` would give them."""
    inside = vars(module) if isinstance(module, Inert) else {}
    passing = inside.get("_non_persistent_buffers_set", ())
    for kind in ("_parameters", "_buffers"):
        for name, tensor in _items(inside.get(kind)):
            if isinstance(tensor, Tensor) and not (kind == "_buffers" and name in passing):
                yield prefix + name, tensor
    for name, child in _items(inside.get("_modules")):
        yield from _tensors(child, f"{prefix}{name}.")


def _items(found: object) -> list[tuple[str, Any]]:
    return list(found.items()) if isinstance(found, dict | OrderedDict) else []
