"""Taking a person out of files, and searching bytes for what is left."""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffalign.evaluate.report import write_atomic
from diffalign.personalize.files import read_tensors, write_tensors

PRECISIONS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""In which a copy of a vector is looked for."""
LEAST = 8
"""Bytes below which a copy could not be told from chance."""


def bytes_of(vector: Tensor, others: Sequence[Tensor] = ()) -> list[bytes]:
    """A vector as it may stand in a file; none where it says nothing of the one person.

    Args:
        vector: of the person.
        others: vectors of other people, who must not be taken for this one.
    """
    if bool((vector == vector.flatten()[0]).all()) or any(torch.equal(vector, o) for o in others):
        return []
    found = [vector.to(t).contiguous().view(torch.uint8).numpy().tobytes() for t in PRECISIONS]
    return [f for f in found if len(f) >= LEAST]


def files_with(folder: Path, wanted: Iterable[bytes]) -> list[Path]:
    """Files anywhere in a folder whose bytes hold any of the wanted ones; an empty wanted one is in none."""
    needles = [w for w in wanted if w]
    return [file for file in sorted(folder.rglob("*")) if file.is_file() and _holds(file, needles)]


def _holds(file: Path, needles: Iterable[bytes]) -> bool:
    if file.stat().st_size == 0:
        return False
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(needle) >= 0 for needle in needles)


def rewrite_without(file: Path, one: str, tensor: str) -> bool:
    """Rewrite a file without what stands under an id, where its form is known; returns whether it was.

    Tensors whose names hold the id, or are ``tensor``, go from safetensors, lines that hold the id from JSON
    lines; from JSON what is the id or is named by it, and whole objects of which an entry is the id (what
    ``export`` gave out is one: an empty object stays). A link stays one.
    """
    try:
        if file.suffix == ".safetensors":
            _tensors_without(file.resolve(), one, tensor)
        elif file.suffix == ".json":
            _json_without(file.resolve(), one)
        elif file.suffix == ".jsonl":
            _lines_without(file.resolve(), one)
        else:
            return False
    except ValueError:  # damaged: whoever searches the bytes afterwards finds and names it
        return False
    return True


def _tensors_without(file: Path, one: str, tensor: str) -> None:
    tensors, metadata = read_tensors(file)
    kept = {k: v for k, v in tensors.items() if one not in k and k != tensor}
    write_tensors(file, kept, {k: v for k, v in metadata.items() if one not in k + v})


def _json_without(file: Path, one: str) -> None:
    whole = json.loads(file.read_text(encoding="utf-8"))
    found = {} if _is_of(whole, one) else _pruned(whole, one)
    write_atomic(file, json.dumps(found, indent=1) + "\n")


def _lines_without(file: Path, one: str) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    write_atomic(file, "".join(line + "\n" for line in lines if one not in line))


def _pruned(found: Any, one: str) -> Any:
    """JSON without entries that are of the person, or named the id."""
    if isinstance(found, dict):
        return {k: _pruned(v, one) for k, v in found.items() if k != one and not _is_of(v, one)}
    return [_pruned(v, one) for v in found if not _is_of(v, one)] if isinstance(found, list) else found


def _is_of(found: Any, one: str) -> bool:
    """Whether a value of JSON is the id, or an object with such an entry: all of it is of the person."""
    return bool(found == one) or (isinstance(found, dict) and one in found.values())
