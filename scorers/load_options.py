"""What can be chosen when a scorer is loaded: a frozen dataclass per scorer, checked in one place."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

from scorers.preprocess import Mode

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from scorers.protocol import Scorer

O = TypeVar("O", bound="DataclassInstance")  # noqa: E741


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """Options of a scorer that has none; those of others derive from it."""


@dataclass(frozen=True, kw_only=True)
class PictureOptions(LoadOptions):
    """Options of a scorer whose pictures are resized in one of two ways."""

    preprocess: Mode = "tensor"
    """``"tensor"`` on the device, or ``"exact"``: the pixels of the published transform, by Pillow."""


def option_type(loader: Any) -> type[LoadOptions]:
    """Which options a registered loader takes; others' loaders need not say."""
    about = getattr(loader, "about", loader)
    found: type[LoadOptions] = getattr(about, "option_type", LoadOptions)
    return found


def with_options(scorer: Scorer, options: LoadOptions) -> Scorer:
    """Give a loaded scorer its options.

    Raises:
        ValueError: options that do not go together, or a scorer that says it takes options and does not.
    """
    from scorers.base import ScorerBase

    if not isinstance(scorer, ScorerBase):
        raise ValueError(f"scorer {scorer.name!r} derives not from ScorerBase, which takes the options")
    scorer.take_options(options)
    return scorer


def parse_options(scorer: str, kind: type[O], given: Mapping[str, object]) -> O:
    """Options of a scorer from names and values; texts are read as what the option is (``"true"``, ``"3"``).

    Args:
        scorer: its name, for errors.
        kind: its options.
        given: values, typed or as texts, by name.

    Raises:
        ValueError: an option that the scorer does not have, or a value that is none of its.
    """
    from pydantic import TypeAdapter, ValidationError

    known = [f.name for f in fields(kind)]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"scorer {scorer!r} has no option {name!r}{hint} (it has: {', '.join(known) or 'none'})"
            )
    try:
        found: O = TypeAdapter(kind).validate_python(dict(given))
    except ValidationError as error:
        wrong = error.errors()[0]
        where = ".".join(map(str, wrong["loc"]))
        raise ValueError(
            f"scorer {scorer!r}, option {where!r}: {wrong['msg']}, got {wrong['input']!r}"
        ) from None
    return found
