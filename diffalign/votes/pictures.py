"""The pictures that votes are about: found again in folders of results, and checked against their hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffalign.evaluate.results import Row, read_rows
from diffalign.votes.rows import Shown, Vote, VoteError, gallery_id

Key = tuple[str, str, int]
"""Model, prompt id and seed of a picture."""


def gallery_hash(rows: Iterable[Row]) -> str:
    """Name of the gallery that shows these pictures; see ``Vote.gallery``."""
    return gallery_id((r.model, r.prompt_id, r.seed, r.sha256) for r in rows)


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Pictures of some folders of results."""

    folders: tuple[Path, ...]
    rows: tuple[Row, ...]
    files: dict[tuple[Key, str], Path]
    """Where each picture lies, by key and sha256."""
    latest: dict[Key, str]
    """sha256 of each picture."""
    galleries: frozenset[str]
    """Hashes of the galleries that can be made of a folder alone, or of all together."""

    def read(self, vote: Vote, side: Shown) -> bytes:
        """Bytes of one side of a vote.

        Raises:
            VoteError: the picture is not there, or is no longer the one that was voted on.
        """
        trouble = self._trouble(vote, side)
        if trouble is not None:
            raise VoteError(trouble)
        file = self.files[(vote_key(vote, side), side.sha256)]
        try:
            data = file.read_bytes()
        except OSError as error:
            raise VoteError(
                f"{file} cannot be read ({error.strerror}): restore the picture that was voted on"
            ) from error
        if hashlib.sha256(data).hexdigest() != side.sha256:
            raise VoteError(
                f"{file} is no longer the picture that was voted on (its hash changed): restore it, or "
                "leave out its votes"
            )
        return data

    def _trouble(self, vote: Vote, side: Shown) -> str | None:
        key = vote_key(vote, side)
        if key not in self.latest:
            return f"no picture of model {side.model!r}, prompt {vote.prompt_id}, seed {vote.seed}"
        if (key, side.sha256) not in self.files:
            return (
                f"the picture of model {side.model!r}, prompt {vote.prompt_id}, seed {vote.seed} was made "
                "anew since the vote (its hash changed)"
            )
        return None


def vote_key(vote: Vote, side: Shown) -> Key:
    """Key of the picture on one side of a vote."""
    return side.model, vote.prompt_id, vote.seed


def find_pictures(folders: Sequence[Path]) -> Pictures:
    """Read the results of folders.

    Raises:
        ResultsError: a folder without results.jsonl, or a damaged one.
        VoteError: no folder, or none that holds a picture.
    """
    read = [(folder, read_rows(folder)) for folder in folders]
    rows = [row for _, some in read for row in some]
    if not rows:
        raise VoteError("there are no pictures in the folders of results: name those that were voted on")
    placed = [
        (folder.parent if folder.suffix == ".jsonl" else folder, row) for folder, s in read for row in s
    ]
    return Pictures(
        folders=tuple(folders),
        rows=tuple(rows),
        files={((r.model, r.prompt_id, r.seed), r.sha256): folder / r.path for folder, r in placed},
        latest={(r.model, r.prompt_id, r.seed): r.sha256 for r in rows},
        galleries=frozenset([gallery_hash(rows), *(gallery_hash(some) for _, some in read)]),
    )
