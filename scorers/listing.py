"""What is known of every scorer before it is loaded: for lists."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import Any

from scorers import WEIGHTS_VARIABLE, catalogue, find_weights


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One scorer of a list."""

    name: str
    kind: str = ""
    dims: tuple[str, ...] = ()
    range: tuple[float, float] = (-float("inf"), float("inf"))
    licence: str = ""
    weights: str = ""
    """What must be had to load it; empty if nothing is."""
    size: str = ""
    differentiable: bool = False
    present: bool = False
    """Whether it can be loaded as it is: it needs no weights, or they lie in the folder of weights."""
    problem: str = ""
    """Why it cannot be loaded on this machine: its module is broken, or a package of it is missing."""


def list_scorers(pattern: str = "*", *, differentiable: bool | None = None) -> list[Listed]:
    """Scorers whose name fits a pattern, by name; nothing is loaded but their modules.

    Args:
        pattern: with ``*`` and ``?``, e.g. ``"hps*"``.
        differentiable: only those whose scores have a gradient, or only those without; None takes all.
    """
    found = [_listed(name) for name in catalogue.names() if fnmatch.fnmatchcase(name, pattern)]
    return [one for one in found if differentiable in (None, one.differentiable)]


def _listed(name: str) -> Listed:
    try:
        return _described(name, catalogue.get(name))
    except Exception as error:  # others' code may raise anything, which must not hide the other scorers
        return Listed(name=name, problem=f"broken: {type(error).__name__}: {error}")


def _described(name: str, entry: Any) -> Listed:
    about: Any = getattr(entry, "about", entry)  # a loader names the class of what it loads
    weights = str(getattr(entry, "weights", getattr(about, "weights", "")))
    low, high = getattr(about, "range", Listed.range)
    return Listed(
        name=name,
        kind=str(getattr(about, "kind", "")),  # others' loaders need not say what they load
        dims=tuple(getattr(about, "dims", ())),
        range=(float(low), float(high)),
        licence=str(getattr(about, "licence", "")),
        weights=weights,
        size=str(getattr(about, "size", "")),
        differentiable=bool(getattr(about, "differentiable", False)),
        present=not weights or find_weights(name) is not None,
    )


def lines(found: list[Listed]) -> list[list[str]]:
    """Cells of a table: name, kind, dims, range, gradient, licence, weights."""
    return [
        [
            one.name,
            one.kind,
            ", ".join(one.dims),
            "{:g} to {:g}".format(*one.range) if one.kind else "",
            "yes" if one.differentiable else "no",
            one.licence,
            one.problem or _weights(one),
        ]
        for one in found
    ]


def _weights(one: Listed) -> str:
    if not one.weights:
        return "none needed"
    where = "present" if one.present else f"not in ${WEIGHTS_VARIABLE}/{one.name}"
    return f"{where}: {one.weights}" + (f", {one.size}" if one.size else "")
