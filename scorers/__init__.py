"""Scorers: how much a picture pleases, or how well it shows its prompt.

``scorers.names()`` lists them and ``scorers.load("pickscore", weights="folder")`` loads one. This package
stands alone: it never imports diffalign, and importing it imports neither torch, transformers nor open_clip.
Nothing is downloaded unless a call allows it (``allow_hub=True``).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from scorers.registry import Registry, RegistryError
from scorers.spec import REMOTE, Spec

if TYPE_CHECKING:
    import torch

    from scorers.protocol import Scorer, ScorerLoader

__all__ = ["Registry", "RegistryError", "Spec", "catalogue", "find_weights", "load", "load_spec", "names"]

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
    *,
    options: Mapping[str, object] | None = None,
    allow_hub: bool = False,
) -> Scorer:
    """Load a scorer: frozen, in evaluation mode.

    Args:
        name: a name of ``names()``, ``"package.module:Class"``, or the address of a reward server
            (``"http://127.0.0.1:8711"``), which is asked for every score.
        weights: file or folder; None looks into the folder ``$SCORERS_WEIGHTS/<name>``.
        device: where the scorer computes.
        dtype: precision of the towers, ``"float32"``, ``"bfloat16"`` or ``"float16"``; scores are always
            float32.
        options: of this scorer, by name, e.g. ``{"normalise": "div26", "preprocess": "exact"}``; texts are
            read as what the option is. Of a server they are ``scorers.client.ClientOptions``.
        allow_hub: may weights that are not there be downloaded from where they are published on the Hugging
            Face hub? Never otherwise.

    Raises:
        RegistryError: no scorer has this name.
        FileNotFoundError: the weights are not there; the message says where they were looked for.
        ValueError: unknown precision, an option that the scorer does not have, or weights that do not fit it.
        ConnectionError: the hub or the reward server cannot be reached.
    """
    if name.startswith(REMOTE):
        from scorers.client import ClientOptions, RemoteScorer
        from scorers.load_options import parse_options

        return RemoteScorer(name, options=parse_options(name, ClientOptions, options or {}))
    loader = catalogue.get(name)
    if not options:
        return loader.load(find_weights(name, weights, allow_hub), device=device, dtype=_precision(dtype))
    from scorers.load_options import option_type, parse_options, with_options

    chosen = parse_options(name, option_type(loader), options)  # a wrong one fails before weights are read
    found = find_weights(name, weights, allow_hub)
    return with_options(loader.load(found, device=device, dtype=_precision(dtype)), chosen)


def load_spec(
    spec: str,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
    *,
    allow_hub: bool = False,
) -> Scorer:
    """Load a scorer given in one word, ``name=weights?option=value``; see ``Spec.parse`` and ``load``."""
    found = Spec.parse(spec)
    return load(found.name, found.weights, device, dtype, options=found.options, allow_hub=allow_hub)


def find_weights(name: str, weights: str | Path | None = None, allow_hub: bool = False) -> Path | None:
    """Path of a scorer's weights: the given one, else ``$SCORERS_WEIGHTS/<name>`` if it exists, else None.

    Args:
        name: of the scorer.
        weights: file or folder that is meant.
        allow_hub: download what is nowhere, if it is published on the hub; see ``scorers.hub.fetch``.

    Raises:
        FileNotFoundError: the given path does not exist.
        ConnectionError: the hub is allowed and cannot be reached.
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
    if found is not None and found.exists():
        return found
    if not allow_hub:
        return None
    from scorers.hub import fetch, sources

    files = sources(name)
    return fetch(name, files) if files else None


def _precision(dtype: str | torch.dtype) -> torch.dtype:
    import torch

    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    for name, found in known.items():
        if dtype in (name, found):
            return found
    raise ValueError(f"a scorer cannot run in {dtype!r}; choose one of {', '.join(known)}")
