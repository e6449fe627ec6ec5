"""Align diffusion models with what people prefer.

    run = diffalign.align("training/recipes/shapes-unet-dpo.yaml", "optim.learning_rate=3e-4")

Importing this package imports neither diffusers nor transformers; they come with the first model.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffalign import objectives
    from diffalign.policy.load import load_policy
    from diffalign.train.align import align
    from diffalign.train.finish import Run

__version__ = "0.1.0"
__all__ = ["Run", "align", "load_policy", "objectives"]

_HOMES = {
    "align": "diffalign.train.align",
    "Run": "diffalign.train.finish",
    "load_policy": "diffalign.policy.load",
}


def __getattr__(name: str) -> Any:
    """Import public names when they are first used."""
    if name == "objectives":
        return importlib.import_module("diffalign.objectives")
    if name not in _HOMES:
        raise AttributeError(
            f"module 'diffalign' has no attribute {name!r}; public names: {', '.join(__all__)}"
        )
    return getattr(importlib.import_module(_HOMES[name]), name)
