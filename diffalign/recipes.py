"""Packaged recipes, and help on every option, read from the dataclasses that are the options."""

from __future__ import annotations

import difflib
import shutil
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from diffalign.assets import asset
from diffalign.config import ConfigError
from diffalign.diffusion.corrupt import corruptors
from diffalign.diffusion.spaces import spaces
from diffalign.objectives import objectives
from diffalign.objectives.advantages import advantages
from diffalign.objectives.steps import online_objectives
from diffalign.online.config import OnlineConfig
from diffalign.options import join_key, options_of
from diffalign.registry import Registry
from diffalign.train.config import TrainConfig

REGISTRIES: dict[str, Registry[Any]] = {
    "objective": objectives,
    "online": online_objectives,
    "corruptor": corruptors,
    "space": spaces,
    "advantage": advantages,
}
"""Blocks whose class hangs on their name; ``online`` is the objective of an online run."""
ROOTS: tuple[type[Any], ...] = (TrainConfig, OnlineConfig)
"""Whole recipes: offline and online."""


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

    Blocks whose class hangs on their name, such as ``objective``, give the names of all that there are.

    Raises:
        ConfigError: no such block; the message suggests the nearest.
    """
    if block in REGISTRIES:
        registry = REGISTRIES[block]
        return [f"{block}.{n}\n    {_first_line(registry.get(n))}" for n in registry.names()]
    found = _classes(block)
    lines = []
    for cls in found:
        lines += [f"{block}: {_first_line(cls)}"] if len(found) > 1 else []
        lines += [f"{o.key} = {o.default}   ({o.takes})\n    {o.help}" for o in options_of(cls, block)]
    return lines


def _classes(block: str) -> list[type[Any]]:
    """Dataclasses that a block can be; several where its ``name`` decides."""
    parts = block.split(".") if block else []
    if len(parts) == 2 and parts[0] in REGISTRIES:
        return [REGISTRIES[parts[0]].get(parts[1])]
    found = list(ROOTS)
    for part in parts:
        inner = [block for cls in found for block in _dataclasses(get_type_hints(cls).get(part))]
        found = list(dict.fromkeys(inner))
    if not found:
        named = [f"{key}.{n}" for key, registry in REGISTRIES.items() for n in registry.names()]
        known = [*REGISTRIES, *named, *dict.fromkeys(b for root in ROOTS for b in _blocks(root, ""))]
        near = difflib.get_close_matches(block, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"no block {block!r}; blocks are {', '.join(known)}{hint}")
    return found


def _blocks(cls: type[Any], prefix: str) -> list[str]:
    """Keys of the blocks in a dataclass, at any depth, objectives aside."""
    found = []
    for name, hint in get_type_hints(cls).items():
        inner = [] if name in REGISTRIES else _dataclasses(hint)
        key = join_key(prefix, name)
        found += [key] * bool(inner) + [k for c in inner for k in _blocks(c, key)]
    return found


def _first_line(cls: type[Any]) -> str:
    return (cls.__doc__ or "").strip().split("\n", 1)[0]


def _dataclasses(hint: Any) -> list[type[Any]]:
    return [t for t in (hint, *get_args(hint)) if isinstance(t, type) and is_dataclass(t)]
