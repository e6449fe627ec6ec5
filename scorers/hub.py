"""Weights from the Hugging Face hub: only where the caller allows it, and once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scorers import WEIGHTS_VARIABLE, catalogue
from scorers.registry import RegistryError


@dataclass(frozen=True)
class HubFiles:
    """Files of one repository; several together may make up the weights of a scorer."""

    repo: str
    files: tuple[str, ...]
    """Names, or patterns where a model comes in shards (``"*.safetensors"``)."""

    def __str__(self) -> str:
        """For people."""
        return f"{self.repo} ({', '.join(self.files)})"


def sources(name: str) -> tuple[HubFiles, ...]:
    """Where the weights of a scorer are published on the hub; nothing where they are not, or not as tensors.

    A loader says so by the attribute ``hub``, its own or its class's.
    """
    try:
        loader = catalogue.get(name)
    except RegistryError:
        return ()  # detectors and latent scorers have weights too
    found: tuple[HubFiles, ...] = getattr(getattr(loader, "about", loader), "hub", ())
    return found


def fetch(name: str, files: Sequence[HubFiles]) -> Path:
    """Folder with the files, which are downloaded if the folder is not there yet.

    It is ``$SCORERS_WEIGHTS/<name>``, or ``scorers/<name>`` in the hub's own folder (``HF_HOME``) where the
    variable is not set. A download that was cut off goes on the next time.

    Raises:
        ConnectionError: the hub cannot be reached, or refuses; the message names the repository.
        FileNotFoundError: the repository has no such file.
    """
    from huggingface_hub import constants, snapshot_download

    home = os.environ.get(WEIGHTS_VARIABLE)
    folder = (Path(home).expanduser() if home else Path(constants.HF_HOME) / "scorers") / name
    if folder.exists():
        return folder
    part = folder.with_name(f"{name}.part")
    for source in files:
        try:
            snapshot_download(source.repo, allow_patterns=list(source.files), local_dir=part)
        except (OSError, ValueError) as error:
            raise ConnectionError(
                f"scorer {name!r}: {source} cannot be had from the hub ({error}); try again, or put the "
                f"files into {folder}"
            ) from error
        missing = [pattern for pattern in source.files if not any(part.glob(pattern))]
        if missing:
            raise FileNotFoundError(
                f"scorer {name!r}: the hub's {source.repo} has no {', '.join(missing)}; put the files into "
                f"{folder} by hand"
            )
    try:
        os.replace(part, folder)
    except OSError:
        if not folder.exists():  # else another process had the same done first
            raise
    return folder
