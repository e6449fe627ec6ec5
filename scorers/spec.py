"""A scorer in one word, as command lines and recipes name it: ``name=weights?option=value&...``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

REMOTE = ("http://", "https://")
"""How the address of a reward server begins, which is a name as a whole."""
OPTIONS = re.compile(r"\?(\w+=[^?&]*(?:&\w+=[^?&]*)*)$")


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Name, weights and options of a scorer."""

    name: str
    weights: str | None = None
    """File or folder; None looks in the folder of weights."""
    options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``name``, ``name=weights``, ``name?option=value&...``, ``name=weights?...``, or an address.

        Raises:
            ValueError: no name, or an option twice.
        """
        if text.startswith(REMOTE):
            return cls(name=text)
        found = OPTIONS.search(text)
        name, _, weights = (text[: found.start()] if found else text).partition("=")
        if not name:
            raise ValueError(f"{text!r} names no scorer; write name, name=weights or name?option=value")
        options: dict[str, str] = {}
        for part in found[1].split("&") if found else ():
            key, _, value = part.partition("=")
            if key in options:
                raise ValueError(f"{text!r} gives the option {key!r} twice")
            options[key] = value
        return cls(name=name, weights=weights or None, options=options)

    @property
    def remote(self) -> bool:
        """Whether it is the address of a reward server."""
        return self.name.startswith(REMOTE)

    def with_weights(self, weights: str) -> Self:
        """The same with these weights.

        Raises:
            ValueError: it has weights already.
        """
        if self.weights is not None:
            raise ValueError(f"scorer {self.name!r} has weights already ({self.weights}); give them once")
        return replace(self, weights=weights)

    def __str__(self) -> str:
        """As ``parse`` reads it."""
        options = "&".join(f"{key}={value}" for key, value in self.options.items())
        return self.name + (f"={self.weights}" if self.weights else "") + (f"?{options}" if options else "")
