"""For whom pictures are asked: somebody, a mixture of people, or a direction; and where their adapter is."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffalign.personalize.adapter import CONFIG, encoder_options, read_config
from diffalign.personalize.pipeline import Attached, attach, direction_of, nobody_stored
from diffalign.personalize.users import INDEX, Users, UsersError

EXPORT, FOLDER = "export", "users"
"""Folder of a run's weights, and that of its people in it."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Somebody, a mixture of people, or a direction; nobody where neither is named.

    Raises:
        ValueError: both of them, a mixture that cannot be read, or a strength of nobody.
    """

    user: str = ""
    """``anna``, or a mixture ``anna:0.7,ben:0.3``; without weights all count alike."""
    direction: str = ""
    """Weights of scorers, ``hps=0.8,aesthetic=0.6``, for an adapter of directions."""
    scale: float | None = None
    """Weight of the attention to the person; None is that of the adapter."""
    guidance: float | None = None
    """Weight of guidance of its own for the person, at the price of a third evaluation; None has none."""

    def __post_init__(self) -> None:
        """Check what can be checked without an adapter."""
        if self.user and self.direction:
            raise ValueError(f"--user {self.user} and --direction {self.direction} exclude each other")
        named = {"--user-scale": self.scale, "--user-guidance": self.guidance}
        for option, value in named.items():
            if value is not None and not self.somebody:
                raise ValueError(f"{option} is {value}, and nobody is named: add --user or --direction")
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{option} is {value}; it must be a finite number")
        self.people()

    @property
    def somebody(self) -> bool:
        """Whether anybody, or a direction, is named."""
        return bool(self.user or self.direction)

    @property
    def called(self) -> str:
        """Name for columns and folders: letters, digits, '.', '_' and '-'."""
        found = re.sub(r"[^A-Za-z0-9._-]+", "-", self.user or self.direction).strip("-._")
        return found or "nobody"

    def people(self) -> str | dict[str, float]:
        """The one person, or the weight of each of a mixture.

        Raises:
            ValueError: an empty or doubled name, or weights of some only.
        """
        parts = [part.strip() for part in self.user.split(",")] if self.user else []
        if len(parts) < 2 and ":" not in self.user:
            return self.user
        split = [_weighed(part, self.user) for part in parts]
        names, weights = [name for name, _ in split], [weight for _, weight in split]
        given = [weight for weight in weights if weight is not None]
        if len(set(names)) < len(names) or 0 < len(given) < len(weights):
            raise ValueError(
                f"--user {self.user}: name each person once, and give all of them a weight or none "
                "(anna:0.7,ben:0.3)"
            )
        return dict(zip(names, given or [1 / len(names)] * len(names), strict=True))

    def put_on(self, attached: Attached) -> Attached:
        """Make all further pictures of the pipeline for whoever is wanted.

        Raises:
            UsersError: somebody unknown.
            ValueError: a direction that the adapter does not know, or none is known to it.
        """
        if self.direction:
            return attached.direct(self.direction, scale=self.scale, user_guidance=self.guidance)
        if self.user:
            return attached.use(self.people(), scale=self.scale, user_guidance=self.guidance)
        return attached.nobody()


def adapter_of(path: Path | str) -> Path:
    """Folder of the user adapter of a run, an export, or a folder of people: the newest where a run has many.

    Raises:
        FileNotFoundError: there is none, and what trains one.
    """
    path = Path(path)
    for place in (path, path / EXPORT):
        found = [
            f for f in (place, *place.glob(FOLDER), *place.glob(f"{FOLDER}-*")) if (f / CONFIG).is_file()
        ]
        if found:
            return max(found, key=_number)
    raise FileNotFoundError(
        f"{path} holds no user adapter ({CONFIG}): it was trained without people; train with a people block, "
        "or name the folder of an adapter by --users"
    )


def base_of(folder: Path) -> str:
    """Name of the model that an adapter was trained on, as its recipe had it.

    Raises:
        ValueError: the adapter does not say.
    """
    base = str(read_config(folder)["branch"].get("base") or "")
    if not base:
        raise ValueError(f"{folder} does not say which model it is of: name the model, and --users {folder}")
    return base


def check_wanted(folder: Path, wanted: Wanted) -> None:
    """Look before anything is loaded whether an adapter knows whoever is wanted.

    Raises:
        UsersError: somebody unknown.
        ValueError: a direction that it does not know, or none is known to it.
    """
    if wanted.direction:
        direction_of(encoder_options(read_config(folder), folder), wanted.direction)
        return
    found = wanted.people()
    for name in [found] if isinstance(found, str) else found:
        if not (folder / INDEX).is_file():
            raise UsersError(nobody_stored(name))
        Users(folder).vector(name)


def attach_wanted(pipe: Any, folder: Path | str, wanted: Wanted) -> Attached:
    """Attach the adapter of a run, an export or a folder of people, for whoever is wanted.

    Raises:
        FileNotFoundError: no adapter there.
        ValueError: see ``attach`` and ``Wanted.put_on``; the pipeline then is what it was.
    """
    attached = attach(pipe, adapter_of(folder))
    try:
        return wanted.put_on(attached)
    except ValueError:
        attached.detach()
        raise


def _number(folder: Path) -> int:
    """1 for ``users``, 2 for ``users-2``."""
    tail = folder.name.removeprefix(f"{FOLDER}-")
    return int(tail) if tail.isdecimal() else 1


def _weighed(part: str, whole: str) -> tuple[str, float | None]:
    """Name and weight of one of a mixture."""
    name, separator, number = part.rpartition(":")
    if not separator:
        name, number = part, ""
    try:
        weight = float(number) if separator else None
    except ValueError:
        weight = math.nan
    if not name or (weight is not None and not math.isfinite(weight)):
        raise ValueError(f"--user {whole}: {part!r} is no NAME or NAME:WEIGHT (anna:0.7,ben:0.3)")
    return name, weight
