"""Paths as the commands of this package take them."""

from __future__ import annotations

from pathlib import Path

from diffalign.assets import asset


def path_of(path: str) -> Path:
    """Path of an asset, or as it is: a glob pattern, or one whose reader says that there is nothing."""
    try:
        return asset(path)
    except FileNotFoundError:
        return Path(path)


def split_changes(arguments: list[str]) -> tuple[list[Path], list[str]]:
    """Paths, and the ``key=value`` among them that are no files."""
    changes = [a for a in arguments if "=" in a and not Path(a).exists()]
    return [path_of(a) for a in arguments if a not in changes], changes
