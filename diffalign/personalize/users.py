"""The store of people: a vector for each under a salted hash of the name, to be given out or deleted.

``users.json`` says who is there, in the order of their rows, and ``users.safetensors`` holds their vectors.
Names are never written. A hash hides a name from those who do not hold the salt, which stands in users.json:
whoever has the folder can try names out.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from diffalign.evaluate.report import write_atomic
from diffalign.personalize.erase import bytes_of, files_with, rewrite_without
from diffalign.personalize.files import STATES, read_tensors, write_tensors

INDEX, VECTORS, LOCK = "users.json", "users.safetensors", "users.lock"
FORMAT = 1
DIGITS = 32
"""Hex digits of a hashed id: 128 bits."""
WAIT = 10.0
"""Seconds to wait for another process that changes the store."""

Kind = Literal["tokens", "weights"]
"""tokens: (K, D) as they are. weights: (P,) of a table's prototypes, before their softmax."""


class UsersError(ValueError):
    """People that are unknown or cannot be stored; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class Person:
    """What the index says of somebody."""

    id: str
    """Salted hash of the name."""
    votes: int
    """How many votes the vector was made of; 0 where unknown."""
    added: str
    """Date, YYYY-MM-DD."""


@dataclass(frozen=True, kw_only=True)
class Deletion:
    """What deleting a person did."""

    id: str
    rewritten: tuple[Path, ...]
    """Files from which the person was taken."""


class Users:
    """People of a folder. Every change is on disk, whole, when the call returns."""

    def __init__(self, folder: Path | str, kind: Kind | None = None) -> None:
        """Open a folder of people, or begin one, with a salt of its own, where ``kind`` says of what.

        Raises:
            UsersError: nobody is stored there and ``kind`` is None; or it holds another kind.
        """
        self.folder = Path(folder)
        if kind is not None and kind not in get_args(Kind):
            raise UsersError(f"people are stored as {' or '.join(get_args(Kind))}, not as {kind!r}")
        if not (self.folder / INDEX).is_file():
            if kind is None:
                raise UsersError(f"{self.folder} holds no {INDEX}: nobody is stored there")
            self._write_index({"format": FORMAT, "salt": secrets.token_hex(16), "kind": kind, "people": {}})
        found = self._index()
        self.salt, self.kind = bytes.fromhex(found["salt"]), _kind(found["kind"], self.folder)
        if kind is not None and kind != self.kind:
            raise UsersError(
                f"{self.folder} stores people as {self.kind}, not as {kind}: choose another folder"
            )

    def id_of(self, name: str) -> str:
        """Hashed id of a name; the id of somebody who is stored stays itself."""
        return (
            self._id_among(name, {*self.ids(), *self._vectors()}) if _like_an_id(name) else self._hash(name)
        )

    def people(self) -> list[Person]:
        """Everybody, in the order of rows."""
        return [Person(id=one, **about) for one, about in self._index()["people"].items()]

    def ids(self) -> list[str]:
        """Hashed ids, in the order of rows."""
        return list(self._index()["people"])

    def rows(self, names: Sequence[str]) -> Tensor:
        """(B,) int64 rows of people by name or id, -1 for those who are not stored."""
        places = {one: i for i, one in enumerate(self.ids())}
        found = [places.get(self._id_among(name, places), -1) for name in names]
        return torch.tensor(found, dtype=torch.int64)

    def matrix(self) -> Tensor:
        """(U, ...) float32 vectors in the order of rows; (0,) where there is nobody.

        Raises:
            UsersError: a vector is missing.
        """
        vectors, ids = self._vectors(), self.ids()
        missing = [one for one in ids if one not in vectors]
        if missing:
            raise UsersError(
                f"{self.folder / VECTORS} lacks {len(missing)} of {len(ids)} people: copy the folder again, "
                f"or delete them (diffalign users delete {self.folder} {missing[0]})"
            )
        return torch.stack([vectors[one].float() for one in ids]) if ids else torch.zeros(0)

    def vector(self, name: str) -> Tensor:
        """Float32 vector of somebody.

        Raises:
            UsersError: unknown, or the vector is missing.
        """
        one = self._known(name)
        found = self._vectors().get(one)
        if found is None:
            raise UsersError(f"{self.folder / VECTORS} lacks the vector of {one}: copy the folder again")
        return found.float()

    def add(self, name: str, vector: Tensor, *, votes: int = 0) -> Person:
        """Store somebody new.

        Raises:
            UsersError: the name is taken, or the vector does not fit those of the others or is not finite.
        """
        self.add_all({name: vector}, votes={name: votes})
        return self.people()[-1]

    def add_all(self, vectors: Mapping[str, Tensor], *, votes: Mapping[str, int] | None = None) -> None:
        """Store several people at once; see ``add``."""
        with self._alone():
            index, held = self._index(), self._vectors()
            people = index["people"]
            shapes = {tuple(v.shape) for one, v in held.items() if one in people}
            for name, vector in vectors.items():
                one = self._hash(name)  # also of a name that looks like an id: names are never written
                self._check(one, vector, shapes, one in people)
                held[one] = vector.detach().float()
                shapes.add(tuple(vector.shape))
                people[one] = {
                    "votes": int((votes or {}).get(name, 0)),
                    "added": f"{datetime.now(UTC):%Y-%m-%d}",
                }
            # vectors first: whoever the index names has one, also when the power fails in between
            write_tensors(self.folder / VECTORS, held)
            self._write_index(index)

    def export(self, name: str) -> dict[str, Any]:
        """Everything that is stored of somebody, as JSON.

        Raises:
            UsersError: see ``vector``.
        """
        vector, one = self.vector(name), self.id_of(name)
        person = next(p for p in self.people() if p.id == one)
        return {**asdict(person), "kind": self.kind, "shape": list(vector.shape), "vector": vector.tolist()}

    def delete(self, name: str, also: Sequence[Path] = ()) -> Deletion:
        """Take somebody out of every file of the folder and of further folders, and see that nothing is left.

        Vectors under the person's id, and profiles under the ``name``, go from all safetensors, and the id
        from all JSON and JSON lines. What cannot be rewritten (a checkpoint of the trainer with all people
        in one matrix) is found by its bytes and named.

        Raises:
            UsersError: unknown; or files still hold the person when all that can be done is done.
        """
        one = self.id_of(name)
        with self._alone():
            held = self._vectors()
            if one not in held and one not in self._index()["people"]:
                raise UsersError(self._unknown(one))
            others = [vector for other, vector in held.items() if other != one]
            named = [one.encode(), f'"{name}{STATES}"'.encode()]
            traces = [*named, *(bytes_of(held[one], others) if one in held else ())]
            places = [self.folder, *also]
            found = [f for place in places for f in files_with(place, named)]
            rewritten = [f for f in found if rewrite_without(f, one, name + STATES)]
            left = [f for place in places for f in files_with(place, traces)]
        if left:
            raise UsersError(
                f"{one} is out of {len(rewritten)} files, but {', '.join(map(str, left))} still hold the "
                "person in a form that cannot be rewritten: delete these files"
            )
        return Deletion(id=one, rewritten=tuple(rewritten))

    def _hash(self, name: str) -> str:
        return hmac.new(self.salt, name.encode(), hashlib.sha256).hexdigest()[:DIGITS]

    def _id_among(self, name: str, stored: Container[str]) -> str:
        return name if name in stored else self._hash(name)

    def _check(self, one: str, vector: Tensor, shapes: set[tuple[int, ...]], taken: bool) -> None:
        if taken:
            raise UsersError(
                f"{one} is stored already: delete the person first (diffalign users delete), or choose "
                "another name"
            )
        dimensions = 2 if self.kind == "tokens" else 1
        if vector.ndim != dimensions or (shapes and tuple(vector.shape) not in shapes):
            wanted = f"{dimensions} dimensions" if not shapes else str(next(iter(shapes)))
            raise UsersError(
                f"the vector is {tuple(vector.shape)} and people here have {wanted} ({self.kind}): use the "
                "encoder of this folder"
            )
        if not bool(vector.isfinite().all()):
            raise UsersError(f"the vector of {one} has entries that are not finite: fit it again")

    def _known(self, name: str) -> str:
        one = self.id_of(name)
        if one not in self._index()["people"]:
            called = "" if name == one else f"{name!r}: "
            raise UsersError(called + self._unknown(one))
        return one

    def _unknown(self, one: str) -> str:
        count = len(self.ids())
        return (
            f"nobody is stored as {one} in {self.folder}, which knows {count} people (diffalign users list); "
            "diffalign users add learns of somebody new"
        )

    def _vectors(self) -> dict[str, Tensor]:
        return read_tensors(self.folder / VECTORS)[0] if (self.folder / VECTORS).is_file() else {}

    def _index(self) -> dict[str, Any]:
        file = self.folder / INDEX
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UsersError(f"{file} cannot be read as JSON ({error}): copy it again") from error
        if not isinstance(found, dict) or found.get("format") != FORMAT or not _whole(found):
            raise UsersError(
                f"{file} is no index of people in format {FORMAT}: use the version that wrote it"
            )
        return found

    def _write_index(self, index: Mapping[str, Any]) -> None:
        write_atomic(self.folder / INDEX, json.dumps(index, indent=1) + "\n")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the store against other processes that change it."""
        file, until = self.folder / LOCK, time.monotonic() + WAIT
        while True:
            try:
                os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                break
            except FileExistsError:
                if time.monotonic() > until:
                    raise UsersError(
                        f"another process changes {self.folder}; if none does, delete {file}"
                    ) from None
                time.sleep(0.05)
        try:
            yield
        finally:
            file.unlink(missing_ok=True)


def _like_an_id(name: str) -> bool:
    return re.fullmatch(rf"[0-9a-f]{{{DIGITS}}}", name) is not None


def _kind(found: Any, folder: Path) -> Kind:
    for kind in get_args(Kind):
        if found == kind:
            return kind  # type: ignore[no-any-return]
    raise UsersError(f"{folder / INDEX} stores people as {found!r}; it must be {' or '.join(get_args(Kind))}")


def _whole(index: Mapping[str, Any]) -> bool:
    """Whether an index has all its parts."""
    people, salt = index.get("people"), index.get("salt")
    return (
        isinstance(people, dict)
        and isinstance(salt, str)
        and re.fullmatch(r"([0-9a-f]{2}){8,}", salt) is not None
        and all(isinstance(p, dict) and set(p) == {"votes", "added"} for p in people.values())
    )
