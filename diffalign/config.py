"""Recipes: strict YAML and ``key.sub=value`` overrides to typed dataclasses, and back.

The dataclasses are the only list of options: their fields are the keys, their annotations the checks (made by
pydantic, strictly), and the string under a field is its help.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args, get_origin

import yaml
from pydantic import TypeAdapter, ValidationError

from diffalign.options import describe, help_of, hints_of, join_key, members_of, options_of, show
from diffalign.strict_yaml import Dumper, Loader

__all__ = ["ConfigError", "dump", "help_of", "load", "options_of", "read_block"]

T = TypeVar("T")
Unions = Mapping[str, Callable[[str], type[Any]]]
Names = Mapping[str, Callable[[type[Any]], str]]


class ConfigError(ValueError):
    """A recipe that cannot be used; one line for each fault, with the key, the value and what is allowed."""


def load(
    cls: type[T],
    source: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    unions: Unions | None = None,
) -> T:
    """Read a recipe.

    Args:
        cls: dataclass of the whole recipe.
        source: YAML file, or its content. Numbers like ``1e-5`` are floats; only ``true`` and ``false`` are
            booleans (YAML 1.2), so that ``off`` and ``no`` stay words.
        overrides: ``key.sub=value`` strings, applied in order; values are YAML, ``key=null`` empties.
        unions: for keys of blocks whose class hangs on their ``name``: a function from the name to the
            dataclass, e.g. ``{"objective": objectives.get}``. Items of lists go by the key of the list.

    Raises:
        ConfigError: no such file, broken YAML, an unknown key, a wrong or missing value.
    """
    raw: Any = dict(source) if isinstance(source, Mapping) else _read_file(Path(source))
    for override in overrides:
        raw = _override(raw, override)
    reader = _Reader(unions or {})
    config = reader.value(cls, raw, "")
    if reader.errors:
        raise ConfigError("\n".join(reader.errors))
    return cast(T, config)


def read_block(path: Path) -> Mapping[str, Any]:
    """The top of a YAML file, unchecked; an empty mapping where it is none.

    Raises:
        ConfigError: no such file, or broken YAML.
    """
    raw = _read_file(path)
    return raw if isinstance(raw, Mapping) else {}


def dump(config: Any, names: Names | None = None) -> str:
    """YAML of a config, every option written out, that ``load`` turns into an equal config.

    Args:
        config: dataclass.
        names: for keys of blocks whose class hangs on their name: a function from the class to the name.
            Without it the name is ``module:Class``, which registries understand as well.
    """
    return yaml.dump(_plain(config, "", names or {}), Dumper=Dumper, sort_keys=False, width=110)


class _Reader:
    """Builds dataclasses from plain values and gathers every fault on the way."""

    def __init__(self, unions: Unions) -> None:
        self.unions = unions
        self.errors: list[str] = []

    def value(self, kind: Any, raw: Any, key: str) -> Any:
        """``raw`` as ``kind``; a fault is noted and gives None."""
        members = members_of(kind)
        if raw is None and type(None) in members:
            return None
        members = [m for m in members if m is not type(None)]
        blocks: list[Any] = [m for m in members if is_dataclass(m)]
        if len(members) == 1 and get_origin(members[0]) in (tuple, list):
            return self._items(members[0], raw, key)
        if len(members) == 1 and get_origin(members[0]) is dict and is_dataclass(get_args(members[0])[1]):
            return self._entries(members[0], raw, key)
        if any(isinstance(raw, block) for block in blocks):
            return raw  # made in Python already
        if _pattern(key) in self.unions:
            return self._named(kind, raw, key)
        if blocks and (isinstance(raw, Mapping) or len(blocks) == len(members)):
            return self._block_of(kind, blocks, raw, key)
        return self._leaf(kind, raw, key)

    def _leaf(self, kind: Any, raw: Any, key: str) -> Any:
        """Let pydantic check a value as if it came from JSON: a list may be a tuple, nothing else is bent."""
        try:
            return TypeAdapter(kind).validate_json(json.dumps(raw, default=str), strict=True)
        except ValidationError as error:
            reason = error.errors()[0]["msg"] if describe(kind) == "other" else ""
            return self._wrong(kind, raw, key, reason)

    def _items(self, kind: Any, raw: Any, key: str) -> Any:
        inner = get_args(kind)
        endless = get_origin(kind) is list or inner[-1] is Ellipsis
        if not isinstance(raw, list | tuple) or not (endless or len(raw) == len(inner)):
            return self._wrong(kind, raw, key)
        kinds = [inner[0]] * len(raw) if endless else inner
        pairs = enumerate(zip(kinds, raw, strict=True))
        return get_origin(kind)([self.value(k, item, f"{key}[{i}]") for i, (k, item) in pairs])

    def _entries(self, kind: Any, raw: Any, key: str) -> Any:
        """A block whose keys the user chose, and whose values are blocks of one class."""
        if not isinstance(raw, Mapping):
            return self._wrong(kind, raw, key)
        return {str(k): self.value(get_args(kind)[1], item, join_key(key, str(k))) for k, item in raw.items()}

    def _named(self, kind: Any, raw: Any, key: str) -> Any:
        """Build a block whose class is found by its name."""
        if not isinstance(raw, Mapping) or not isinstance(raw.get("name"), str):
            shown = f"has no name: {show(raw)}" if isinstance(raw, Mapping) else f"is {show(raw)}"
            return self._fault(f"{key} {shown}; it takes a block with a name, for example {{name: ...}}")
        try:
            cls = self.unions[_pattern(key)](raw["name"])
        except (KeyError, ImportError, ValueError) as error:
            return self._fault(f"{key}.name is {raw['name']!r}; {error.args[0] if error.args else error}")
        bases = tuple(m for m in members_of(kind) if isinstance(m, type))
        if not (is_dataclass(cls) and (not bases or issubclass(cls, bases))):
            return self._fault(f"{key}.name is {raw['name']!r}, which cannot be used as {describe(kind)}")
        own_name = any(f.name == "name" for f in fields(cls))
        given = {k: v for k, v in raw.items() if k != "name" or own_name}
        return self.block(cls, given, key, label=raw["name"])

    def _block_of(self, kind: Any, blocks: list[Any], raw: Any, key: str) -> Any:
        """Build one of several dataclasses, told apart by their Literal field ``name``."""
        if len(blocks) == 1 or not isinstance(raw, Mapping):
            return self.block(blocks[0], raw, key) if len(blocks) == 1 else self._wrong(kind, raw, key)
        by_name = {name: block for block in blocks for name in get_args(hints_of(block).get("name"))}
        name = raw.get("name")
        if name not in by_name:
            start = f"{key}.name is missing" if name is None else f"{key}.name is {show(name)}"
            return self._fault(f"{start}; it takes one of {', '.join(by_name)}{_hint(name, list(by_name))}")
        return self.block(by_name[name], raw, key, label=str(name))

    def block(self, cls: Any, raw: Any, key: str, label: str = "") -> Any:
        """Build one dataclass; its own ``__post_init__`` has the last word."""
        if not isinstance(raw, Mapping):
            return self._wrong(cls, raw, key)
        before, known = len(self.errors), {f.name: f for f in fields(cls) if f.init}
        for name in raw:
            if name not in known:
                self.errors.append(_unknown(cls, str(name), key, label))
        given = {n: self.value(hints_of(cls)[n], raw[n], join_key(key, n)) for n in known if n in raw}
        for name, f in known.items():
            if name not in raw and f.default is MISSING and f.default_factory is MISSING:
                self.errors.append(
                    f"{join_key(key, name)} is missing; it takes {describe(hints_of(cls)[name])}"
                )
        if len(self.errors) > before:
            return None
        try:
            return cls(**given)
        except ValueError as error:
            return self._fault(f"{key}: {error}" if key else str(error))

    def _wrong(self, kind: Any, raw: Any, key: str, reason: str = "") -> None:
        hint = _hint(raw, [c for m in members_of(kind) if get_origin(m) is Literal for c in get_args(m)])
        takes = reason or f"it takes {describe(kind)}"
        self._fault(f"{key or 'the recipe'} is {show(raw)}; {takes}{hint}")

    def _fault(self, text: str) -> None:
        self.errors.append(text)


def _unknown(cls: Any, name: str, key: str, label: str) -> str:
    """Message on an unknown key: the nearest one, where else it may belong, and all that the block takes."""
    known = [f.name for f in fields(cls) if f.init]
    hint = _hint(name, known)
    if not hint:
        elsewhere = [o.key for o in options_of(cls) if o.key.rpartition(".")[2] == name]
        hint = f"; did you mean {elsewhere[0]!r}?" if elsewhere else ""
    block = f"{key} ({label})" if label else key or "a recipe"
    end = "" if hint.endswith("?") else ";"
    return f"unknown key {join_key(key, name)!r}{hint}{end} {block} takes {', '.join(known) or 'no options'}"


def _pattern(key: str) -> str:
    """A key without the numbers of list items."""
    return re.sub(r"\[\d+\]", "", key)


def _hint(value: Any, choices: Sequence[Any]) -> str:
    near = difflib.get_close_matches(str(value), [str(c) for c in choices], n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def _plain(value: Any, key: str, names: Names) -> Any:
    """Dataclasses, tuples and paths as what YAML knows."""
    if is_dataclass(value):
        return {f.name: _field(value, f.name, join_key(key, f.name), names) for f in fields(value) if f.init}
    if isinstance(value, list | tuple):
        return [_plain(item, key, names) for item in value]
    if isinstance(value, Mapping):
        return {k: _plain(v, join_key(key, k), names) for k, v in value.items()}
    return str(value) if isinstance(value, Path) else value


def _field(owner: Any, name: str, key: str, names: Names) -> Any:
    """Plain value of one field; blocks of a class that the annotation does not name get a name."""
    value = getattr(owner, name)
    kind = hints_of(type(owner))[name]
    if isinstance(value, list | tuple):
        kinds = [k for m in members_of(kind) for k in get_args(m)]
        return [_block(item, kinds, key, names) for item in value]
    return _block(value, members_of(kind), key, names)


def _block(value: Any, kinds: Sequence[Any], key: str, names: Names) -> Any:
    plain = _plain(value, key, names)
    members = [m for kind in kinds for m in members_of(kind)]
    if not is_dataclass(value) or (type(value) in members and key not in names) or "name" in plain:
        return plain
    cls = type(value)
    return {"name": names[key](cls) if key in names else f"{cls.__module__}:{cls.__qualname__}"} | plain


def _override(raw: Any, override: str) -> Any:
    """A copy of the values with one override applied.

    Raises:
        ConfigError: no ``=``, broken YAML, or a key inside of something that is no block.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(
            f"override {override!r} is no key=value; write for example optim.learning_rate=3e-4"
        )
    return _set(raw, key.split("."), _parse(text, f"override {override!r}"), key)


def _set(raw: Any, path: list[str], value: Any, key: str) -> Any:
    if not path:
        return value
    if raw is not None and not isinstance(raw, Mapping):
        raise ConfigError(
            f"override {key!r} goes into {show(raw)}, which is no block; override the whole of it"
        )
    block = dict(raw or {})
    block[path[0]] = _set(block.get(path[0]), path[1:], value, key)
    return block


def _read_file(path: Path) -> Any:
    try:
        return _parse(path.read_text(encoding="utf-8"), str(path)) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the recipe {path}: {error}; check the path") from error


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1} column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{where}{line}: {getattr(error, 'problem', None) or error}") from error
