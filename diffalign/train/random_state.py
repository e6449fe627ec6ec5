"""State of the random generators that dropout and user code may draw from."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def random_tensors(device: torch.device) -> dict[str, Tensor]:
    """States of torch's generators: of the CPU, and of the device where it has one of its own."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def random_values() -> dict[str, Any]:
    """States of Python's and numpy's generators, as JSON knows them."""
    version, keys, gauss = random.getstate()
    # numpy's old global generator is the one that user code may draw from without our knowing
    name, words, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "python": [version, list(keys), gauss],
        "numpy": [name, np.asarray(words).tolist(), *rest],
    }


def put_random_state(tensors: Mapping[str, Tensor], values: Mapping[str, Any], device: torch.device) -> None:
    """Put states back; that of a device is left out where the run has moved to another kind."""
    torch.set_rng_state(tensors["cpu"])
    if device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"], device)
    elif device.type == "mps" and "mps" in tensors:
        torch.mps.set_rng_state(tensors["mps"])
    version, keys, gauss = values["python"]
    random.setstate((version, tuple(keys), gauss))
    name, words, *rest = values["numpy"]
    np.random.set_state((name, np.asarray(words, dtype=np.uint32), *rest))  # noqa: NPY002
