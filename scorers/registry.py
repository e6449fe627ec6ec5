"""One registry for everything that is found by name: scorers, objectives, families, readers."""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import logging
import pkgutil
from collections.abc import Callable
from typing import Generic, TypeVar, cast

T = TypeVar("T")
U = TypeVar("U")

logger = logging.getLogger(__name__)


class RegistryError(KeyError):
    """No entry has this name, or two entries want the same one."""

    def __str__(self) -> str:
        """Return the message itself (KeyError would print its repr)."""
        return str(self.args[0]) if self.args else ""


class Registry(Generic[T]):
    """Names to entries, usually classes.

    Entries come from the modules of ``package`` (imported once, when a name is first missing), from the
    entry-point group ``entry_points`` of installed distributions, and from ``"module.path:Name"`` given to
    ``get``.

    Args:
        kind: what the entries are, for error messages, e.g. ``"objective"``.
        package: package whose direct modules register entries on import, e.g. ``"diffalign.objectives"``.
        entry_points: entry-point group in which third parties announce entries.
    """

    def __init__(self, kind: str, package: str | None = None, entry_points: str | None = None) -> None:
        """See the class."""
        self.kind = kind
        self.package = package
        self.entry_points = entry_points
        self._entries: dict[str, T] = {}
        self._scanned = False

    def register(self, name: str) -> Callable[[U], U]:
        """Decorate a class or function to enter it under ``name``.

        Raises:
            RegistryError: the name is taken by something else, or holds a colon.
        """

        def enter(entry: U) -> U:
            old = self._entries.get(name)
            if ":" in name or (old is not None and _address(old) != _address(entry)):
                why = (
                    f"is taken by {_address(old)}"
                    if old is not None
                    else "holds a colon, which is for module:Name"
                )
                raise RegistryError(f"{self.kind} name {name!r} {why}; give {_address(entry)} another name")
            self._entries[name] = cast(T, entry)
            return entry

        return enter

    def get(self, name: str) -> T:
        """Return the entry called ``name``, or the object at ``"module.path:Name"``.

        Raises:
            RegistryError: no such entry; the message suggests near names and lists all.
        """
        if name in self._entries:
            return self._entries[name]
        if ":" in name:
            return self._load(name)
        self._scan()
        if name not in self._entries:
            self._entries[name] = self._load_entry_point(name)
        return self._entries[name]

    def names(self) -> list[str]:
        """Every name, sorted. Imports the package's modules once; entry points are not loaded."""
        self._scan()
        return sorted({*self._entries, *(point.name for point in self._points())})

    def _scan(self) -> None:
        if self._scanned or self.package is None:
            return
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            if not module.name.startswith("_"):
                importlib.import_module(f"{self.package}.{module.name}")
        self._scanned = True

    def _points(self) -> list[importlib.metadata.EntryPoint]:
        if self.entry_points is None:
            return []
        return list(importlib.metadata.entry_points(group=self.entry_points))

    def _load_entry_point(self, name: str) -> T:
        found = [point for point in self._points() if point.name == name]
        if not found:
            raise RegistryError(self._unknown(name))
        if len({point.value for point in found}) > 1:
            values = ", ".join(point.value for point in found)
            logger.warning(
                "%s %r is announced by several distributions (%s); the first is used", self.kind, name, values
            )
        return cast(T, found[0].load())

    def _load(self, address: str) -> T:
        """Import ``"module.path:Name"``."""
        module, _, attribute = address.partition(":")
        try:
            return cast(T, getattr(importlib.import_module(module), attribute))
        except AttributeError:
            raise RegistryError(f"{self.kind} {address!r}: module {module!r} has no {attribute!r}") from None
        except ModuleNotFoundError as error:
            # A missing dependency of the module is another fault than a misspelt path: let it show itself.
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise
            raise RegistryError(
                f"{self.kind} {address!r}: no module named {error.name!r}; is it installed?"
            ) from None
        except ValueError:
            raise RegistryError(f"{self.kind} {address!r} is no address; write package.module:Name") from None

    def _unknown(self, name: str) -> str:
        names = self.names()
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        return f"no {self.kind} is called {name!r}{hint} (there are: {', '.join(names) or 'none'})"


def _address(entry: object) -> str:
    """Module and name of an entry, equal for the same class after a reload."""
    return f"{getattr(entry, '__module__', '?')}:{getattr(entry, '__qualname__', repr(entry))}"
