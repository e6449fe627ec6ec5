"""Scorers: how much a picture pleases, or how well it shows its prompt.

``scorers.names()`` lists them and ``scorers.load("pickscore", weights="folder")`` loads one. This package
stands alone: it never imports diffalign, and importing it imports neither torch, transformers nor open_clip.
Nothing is ever downloaded.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from scorers.registry import Registry, RegistryError

if TYPE_CHECKING:
    import torch

    from scorers.protocol import Scorer, ScorerLoader

__all__ = ["Registry", "RegistryError", "catalogue", "find_weights", "load", "names"]

catalogue: Registry[ScorerLoader] = Registry("scorer", package="scorers", entry_points="scorers")
"""Scorers by name; ``@catalogue.register("name")`` enters a class that has a class method ``load``."""

WEIGHTS_VARIABLE = "SCORERS_WEIGHTS"
"""Environment variable that names the folder with one sub-folder of weights per scorer."""


def names() -> list[str]:
    """Names of all scorers, with those of other installed packages (entry-point group ``scorers``)."""
    return catalogue.names()


def load(
    name: str,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
) -> Scorer:
    """Load a scorer: frozen, in evaluation mode.

    Args:
        name: a name of ``names()``, ``"package.module:Class"``, or the address of a reward server
            (``"http://127.0.0.1:8711"``), which is asked for every score.
        weights: file or folder; None looks into the folder ``$SCORERS_WEIGHTS/<name>``. Never the network.
        device: where the scorer computes.
        dtype: precision of the towers, ``"float32"``, ``"bfloat16"`` or ``"float16"``; scores are always
            float32.

    Raises:
        RegistryError: no scorer has this name.
        FileNotFoundError: the weights are not there; the message says where they were looked for.
        ValueError: unknown precision, or weights that do not fit the scorer.
    """
    if name.startswith(("http://", "https://")):
        from scorers.client import RemoteScorer

        return RemoteScorer(name)
    return catalogue.get(name).load(find_weights(name, weights), device=device, dtype=_precision(dtype))


def find_weights(name: str, weights: str | Path | None = None) -> Path | None:
    """Path of a scorer's weights: the given one, else ``$SCORERS_WEIGHTS/<name>`` if it exists, else None.

    Raises:
        FileNotFoundError: the given path does not exist.
    """
    if weights is not None:
        path = Path(weights).expanduser()
        if not path.exists():
            raise FileNotFoundError(
                f"weights of scorer {name!r}: {path} does not exist (nothing is downloaded)"
            )
        return path
    home = os.environ.get(WEIGHTS_VARIABLE)
    found = Path(home).expanduser() / name if home else None
    return found if found is not None and found.exists() else None


def _precision(dtype: str | torch.dtype) -> torch.dtype:
    import torch

    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    for name, found in known.items():
        if dtype in (name, found):
            return found
    raise ValueError(f"a scorer cannot run in {dtype!r}; choose one of {', '.join(known)}")
