"""What a dataclass of options says about itself: keys, allowed values in words, defaults, and help."""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
import types
from collections.abc import Hashable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints


def help_of(cls: type[Any]) -> dict[str, str]:
    """Help of each field of a dataclass: the string under it in the source, own and inherited alike."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if is_dataclass(base):
            found |= _field_docs(base)
    return {f.name: found.get(f.name, "") for f in fields(cls)}


@dataclass(frozen=True, kw_only=True)
class Option:
    """One key of a recipe, for lists of options."""

    key: str
    """Full key, e.g. ``optim.learning_rate``."""
    takes: str
    """Allowed values in words."""
    default: str
    """Default as YAML, or ``required``."""
    help: str


def options_of(cls: type[Any], prefix: str = "") -> list[Option]:
    """Options of a dataclass and of the blocks in it, in the order of the fields."""
    found = []
    for f in fields(cls):
        kind, key = hints_of(cls)[f.name], join_key(prefix, f.name)
        found.append(Option(key=key, takes=describe(kind), default=_default(f), help=help_of(cls)[f.name]))
        blocks = [m for m in members_of(kind) if is_dataclass(m)]
        if len(blocks) == 1 and not inspect.isabstract(blocks[0]):
            found += options_of(cast(type[Any], blocks[0]), key)
    return found


@cache
def _field_docs(cls: Any) -> dict[str, str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    except (OSError, TypeError):  # made in a session, or without source
        return {}
    docs = {}
    body = cast(ast.ClassDef, tree).body
    for line, below in pairwise(body):
        text = (
            below.value.value
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            else None
        )
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and isinstance(text, str):
            docs[line.target.id] = " ".join(text.split())
    return docs


def describe(kind: Any) -> str:
    """Allowed values of a type in words."""
    members = [m for m in members_of(kind) if m is not type(None)]
    words = [_describe_one(m) for m in members] + ["null"] * (len(members) < len(members_of(kind)))
    return " or ".join(words)


def _describe_one(kind: Any) -> str:
    inner = get_args(kind)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if get_origin(kind) in (tuple, list):
        endless = get_origin(kind) is list or inner[-1] is Ellipsis
        return f"a list, each {describe(inner[0])}" if endless else f"a list of {len(inner)} values"
    if get_origin(kind) in (dict, Mapping) or is_dataclass(kind):
        names = ", ".join(f.name for f in fields(kind)) if is_dataclass(kind) else ""
        return f"a block ({names})" if names else "a block"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
    return words.get(kind, "other")


def members_of(kind: Any) -> list[Any]:
    """Members of a union, or the type alone."""
    return list(get_args(kind)) if get_origin(kind) in (Union, types.UnionType) else [kind]


def _default(f: Any) -> str:
    value = f.default if f.default_factory is MISSING else f.default_factory()
    if value is MISSING:
        return "required"
    return "" if is_dataclass(value) else show(list(value) if isinstance(value, tuple) else value)


def show(value: Any) -> str:
    """A value as it is shown in messages: short, and null, true and false as in YAML."""
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


@cache
def _cached_hints(cls: Hashable) -> dict[str, Any]:
    return get_type_hints(cls)


def hints_of(cls: Any) -> dict[str, Any]:
    """Types of a dataclass's fields, evaluated."""
    return _cached_hints(cls)


def join_key(key: str, name: object) -> str:
    """Full key of a key in a block; the recipe itself has the empty key."""
    return f"{key}.{name}" if key else str(name)
