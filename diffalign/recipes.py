"""Packaged recipes, and help on every option, read from the dataclasses that are the options."""

from __future__ import annotations

import shutil
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from diffalign.assets import asset
from diffalign.config import ConfigError
from diffalign.objectives import objectives
from diffalign.options import options_of
from diffalign.train.config import TrainConfig


def recipes() -> list[tuple[str, str]]:
    """(name, first comment line) of each packaged recipe."""
    found = sorted(asset("training/recipes").glob("*.yaml"))
    return [(p.stem, p.read_text().split("\n", 1)[0].lstrip("# ")) for p in found]


def copy_recipe(name: str, to: Path) -> Path:
    """Copy a recipe.

    Raises:
        FileExistsError: there is a file at ``to``.
        ValueError: no recipe has this name.
    """
    names = [n for n, _ in recipes()]
    if name not in names:
        raise ValueError(f"no recipe {name!r}; there are {', '.join(names)}")
    if to.exists():
        raise FileExistsError(f"{to} exists: give another name, recipes are never copied over a file")
    shutil.copyfile(asset(f"training/recipes/{name}.yaml"), to)
    return to


def option_lines(block: str) -> list[str]:
    """Lines on each option of a block such as optim, data.world or objective.dpo; on all of them for "".

    Raises:
        ConfigError: no such block.
    """
    return [f"{o.key} = {o.default}   ({o.takes})\n    {o.help}" for o in options_of(_block(block), block)]


def _block(block: str) -> type[Any]:
    cls: type[Any] = TrainConfig
    parts = block.split(".") if block else []
    for i, part in enumerate(parts):
        if parts[:i] == ["objective"]:
            return objectives.get(part)
        inner = [t for t in _dataclasses(get_type_hints(cls).get(part))]
        if not inner:
            raise ConfigError(f"no block {block!r}; blocks are {', '.join(_blocks())}, objective.NAME")
        cls = inner[0]
    return cls


def _blocks() -> list[str]:
    hints = get_type_hints(TrainConfig)
    return [name for name, hint in hints.items() if _dataclasses(hint) and name != "objective"]


def _dataclasses(hint: Any) -> list[type[Any]]:
    return [t for t in (hint, *get_args(hint)) if isinstance(t, type) and is_dataclass(t)]
