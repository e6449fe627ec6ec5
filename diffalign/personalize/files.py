"""Files of people and adapters, written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from diffalign.atomic import write_bytes

STATES = ".states"
"""End of the name of a tensor of somebody's profile."""


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Path:
    """Write safetensors whole; see ``write_bytes``."""
    from safetensors.torch import save

    whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    return write_bytes(path, save(whole, metadata={"format": "pt", **(metadata or {})}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors of a safetensors file on the CPU, and its metadata.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; copy the folder again")
    try:
        with safe_open(path, framework="pt") as file:
            # a copy: tensors of safe_open share the file's pages, and the file may be rewritten
            return {name: file.get_tensor(name).clone() for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); copy it again") from error


def one_tensor(path: Path) -> Tensor:
    """The only tensor of a safetensors file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds none or several.
    """
    found = list(read_tensors(path)[0].values())
    if len(found) != 1:
        raise ValueError(f"{path} holds {len(found)} tensors; give a file with the one of the person")
    return found[0]
