"""YAML without surprises: ``1e-5`` is a number, ``off`` and dates are text, and no key comes twice."""

from __future__ import annotations

import re
from typing import Any

import yaml

_FLOAT = r"[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
_SCALARS = (  # tag, what it looks like in YAML 1.2, possible first characters
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?(?:0|[1-9]\d*|0x[0-9a-fA-F]+)", "-+0123456789"),
    ("float", _FLOAT, "-+0123456789."),
    ("merge", r"<<", "<"),
)


def _resolvers(base: dict[str, Any]) -> dict[str, Any]:
    """PyYAML's table of plain scalars (by first character): those of ``base`` and YAML 1.2's."""
    table = {first: list(rules) for first, rules in base.items()}
    for tag, pattern, firsts in _SCALARS:
        for first in firsts:
            rule = (f"tag:yaml.org,2002:{tag}", re.compile(rf"(?:{pattern})\Z"))
            table.setdefault(first, []).append(rule)
    return table


class Loader(yaml.SafeLoader):
    """Safe, YAML 1.2 scalars, and no key twice."""

    yaml_implicit_resolvers = _resolvers({})

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Refuse a key that is no name, or is given twice: the first would be lost without a word."""
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key is a list or a block; it must be a name", key.start_mark
                )
            if key.value in seen and key.value != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value!r} is given twice; keep one", key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


class Dumper(yaml.SafeDumper):
    """Quotes every text that Loader, or a YAML 1.1 reader, would take for something else."""

    yaml_implicit_resolvers = _resolvers(yaml.SafeDumper.yaml_implicit_resolvers)
