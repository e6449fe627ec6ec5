"""Scorers that are put together instead of trained: their "weights" are a json file of options."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scorers import WEIGHTS_VARIABLE


def read_options(
    name: str, path: Path | None, what: str, *, required: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, Any]:
    """Options of a scorer, from a json file or from ``options.json`` in a folder.

    Args:
        name: of the scorer.
        path: file or folder, as ``scorers.find_weights`` gives it.
        what: what the file has to hold, for the message.
        required: options that must be there.
        optional: others that may be.

    Raises:
        FileNotFoundError: no file.
        ValueError: not a json object, or with options missing or unknown.
    """
    if path is None:
        raise FileNotFoundError(
            f"scorer {name!r} needs {what}: pass its path as weights, or put it into "
            f"${WEIGHTS_VARIABLE}/{name}/options.json"
        )
    file = path / "options.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"scorer {name!r}: there is no {file}; it must be {what}")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"scorer {name!r}: {file} is not json ({error}); it must be {what}") from error
    if not isinstance(found, dict):
        raise ValueError(f"scorer {name!r}: {file} is not a json object; it must be {what}")
    return check_options(f"{file}", found, required, optional)


def folder_of(path: Path | None) -> Path:
    """Folder that paths within the options start from: that of the json file, or the given one."""
    return path if path is not None and path.is_dir() else (path or Path()).parent


def check_options(
    where: str, found: dict[str, Any], required: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the options unchanged.

    Raises:
        ValueError: no options at all, or one that is missing or unknown.
    """
    if not isinstance(found, dict):
        raise ValueError(f"{where} is {found!r}; it must be options, {{{', '.join((*required, *optional))}}}")
    missing = [key for key in required if key not in found]
    unknown = [key for key in found if key not in (*required, *optional)]
    if missing or unknown:
        parts = [f"lacks {', '.join(missing)}"] if missing else []
        parts += [f"has unknown {', '.join(unknown)}"] if unknown else []
        raise ValueError(f"{where} {' and '.join(parts)}; options are {', '.join((*required, *optional))}")
    return found
