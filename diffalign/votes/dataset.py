"""``votes to-dataset``: votes to preferences to train on, in a format that every trainer can read."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from diffalign.data.records import BytesImage, Record
from diffalign.data.writers import write
from diffalign.votes.check import check, refuse_troubles, refuse_unusable
from diffalign.votes.count import Counted, counted, pair_of
from diffalign.votes.pictures import Pictures
from diffalign.votes.rows import Shown, Vote, VoteError

Form = Literal["pickapic", "folder", "webdataset"]
Ties = Literal["keep", "drop", "soft"]

USED = "used_prompts.txt"
"""File of prompts that were voted on, one a line, which evaluations leave out."""
ORIGIN = "origin.jsonl"
"""File that says of every record where its pictures come from: prompt id, seed, models, hashes, raters."""
RATERS = "raters.json"
"""Numbers that stand for raters in Pick-a-Pic's user_id."""


@dataclass(frozen=True, kw_only=True)
class DatasetOptions:
    """How votes become preferences."""

    form: Form = "folder"
    """pickapic (one parquet file of pairs), folder (metadata.jsonl and images) or webdataset (tar shards)."""
    kind: Literal["pairs", "likes"] = "pairs"
    """pairs, for DPO and its kin; likes and dislikes of single pictures, for KTO and its kin."""
    ties: Ties = "keep"
    """Of pairs: keep writes label 0.5; drop leaves tie votes out; soft writes the soft label 0.5 besides. Of
    likes: keep likes both pictures, drop leaves them out, soft calls both unknown (0.5).
    """
    raters: Literal["share", "each"] = "share"
    """Several raters on one pair: share makes one pair of them with the share of votes as soft label; each
    writes one pair a rater, with the rater as user id. Likes are always of each.
    """
    aspect: str = "overall"
    """Aspect of the votes."""

    def __post_init__(self) -> None:
        """Check what must fit together.

        Raises:
            VoteError: Pick-a-Pic's columns cannot hold likes or soft ties; an unknown word.
        """
        allowed = {
            "form": ("pickapic", "folder", "webdataset"), "kind": ("pairs", "likes"),
            "ties": ("keep", "drop", "soft"), "raters": ("share", "each"),
        }  # fmt: skip
        for name, words in allowed.items():
            value = getattr(self, name)
            if value not in words:
                raise VoteError(f"{name} is {value!r}; it must be {', '.join(words)}")
        if self.form == "pickapic" and self.kind == "likes":
            raise VoteError("Pick-a-Pic's columns hold pairs: take --form folder or webdataset for likes")
        if self.form == "pickapic" and self.ties == "soft":
            raise VoteError(
                "Pick-a-Pic's columns hold hard labels: take --ties keep or drop, or another --form"
            )


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What was written."""

    path: Path
    """What ``data.path`` of a recipe names."""
    records: int
    kind: str
    counted: Counted
    both_bad: int
    """Votes that called both pictures bad: two dislikes each among likes, nothing among pairs."""
    dropped_ties: int
    used_prompts: int


@dataclass(frozen=True, kw_only=True)
class _Made:
    """A record with the votes that it is made of."""

    record: Record
    votes: tuple[Vote, ...]
    sides: tuple[Shown, ...]


def to_dataset(
    votes: Sequence[Vote],
    pictures: Pictures,
    output: Path,
    options: DatasetOptions | None = None,
    *,
    any_gallery: bool = False,
) -> Dataset:
    """Write the preferences that votes say, whole or not at all.

    Args:
        votes: as read; those that do not count are left out here.
        pictures: the pictures that were voted on.
        output: new folder.
        options: what becomes of them.
        any_gallery: take votes of galleries that the folders do not make, as long as each picture fits.

    Raises:
        VoteError: nothing to write, votes of another gallery, pictures missing or changed, or raters who
            differ where the form holds hard labels only.
        FileExistsError: there is something at ``output``.
    """
    options = options or DatasetOptions()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} exists: choose a new folder for the data set")
    found = check(votes, pictures)
    refuse_troubles(found.troubles, found.votes) if any_gallery else refuse_unusable(found)
    valid = counted(votes)
    chosen = [v for v in valid.votes if v.aspect == options.aspect]
    made = (_pairs if options.kind == "pairs" else _likes)(chosen, pictures, options)
    _check_hard(made, options)
    if not made:
        raise VoteError(
            f"{len(votes)} votes give no {options.kind}: {len(chosen)} count for aspect {options.aspect!r}"
        )
    used = used_prompts(votes)
    _written_at_once(output, lambda folder: _write(folder, made, options, used))
    both_bad = sum(v.choice == "both_bad" for v in chosen)
    ties = sum(v.choice == "tie" for v in chosen) if options.ties == "drop" else 0
    return Dataset(
        path=data_path(output, options.form), records=len(made), kind=options.kind, counted=valid,
        both_bad=both_bad, dropped_ties=ties, used_prompts=len(used),
    )  # fmt: skip


def data_path(folder: Path, form: Form) -> Path:
    """What a recipe's ``data.path`` names of a data set in ``folder``."""
    return folder / "pairs.parquet" if form == "pickapic" else folder


def used_prompts(votes: Sequence[Vote]) -> list[str]:
    """Prompts that a rater has seen, sorted, each on one line; also those of skips and of raters left out."""
    return sorted({" ".join(v.prompt.split()) for v in votes} - {""})


def user_number(rater: str) -> int:
    """Number of a rater, the same in every round and on every machine; a decimal name is its own."""
    if rater.isdecimal() and int(rater) < 2**53:
        return int(rater)
    return int.from_bytes(hashlib.sha256(rater.encode()).digest()[:6], "big")


def _pairs(votes: Sequence[Vote], pictures: Pictures, options: DatasetOptions) -> list[_Made]:
    """A pair record of each group of votes on the same two pictures; both bad says nothing of a pair."""
    groups: dict[object, list[Vote]] = {}
    for v in votes:
        if v.choice == "both_bad" or (v.choice == "tie" and options.ties == "drop"):
            continue
        key = pair_of(v) if options.raters == "share" else (pair_of(v), v.rater)
        groups.setdefault(key, []).append(v)
    return [_pair(group, pictures, options) for group in groups.values()]


def _pair(votes: Sequence[Vote], pictures: Pictures, options: DatasetOptions) -> _Made:
    first = votes[0]
    p = sum(_share_of(first.a, v) for v in votes) / len(votes)
    raters = list(dict.fromkeys(v.rater for v in votes))
    record = Record(
        prompt=first.prompt,
        images=tuple(BytesImage(pictures.read(first, side)) for side in (first.a, first.b)),
        kind="pair",
        values=(p, 1 - p),
        rater=raters[0] if len(raters) == 1 else None,
        models=(first.a.model, first.b.model),
        soft=(0.5, 0.5) if p == 0.5 and options.ties == "soft" else None,
        source=f"vote of {first.rater} at {first.time.isoformat()}",
    )
    return _Made(record=record, votes=tuple(votes), sides=(first.a, first.b))


def _check_hard(made: Sequence[_Made], options: DatasetOptions) -> None:
    soft = sum(m.record.values[0] not in (0, 0.5, 1) for m in made)
    if soft and options.form == "pickapic":
        raise VoteError(
            f"raters differ on {soft} pairs, and Pick-a-Pic's columns hold hard labels: take --raters each, "
            "or --form folder"
        )


def _share_of(side: Shown, vote: Vote) -> float:
    """1 where a vote chose this picture, 0 where it chose the other, 0.5 for a tie."""
    if vote.choice == "tie":
        return 0.5
    return float((vote.a if vote.choice == "a" else vote.b) == side)


def _likes(votes: Sequence[Vote], pictures: Pictures, options: DatasetOptions) -> list[_Made]:
    """A like or dislike of each picture of each vote."""
    tie = {"keep": 1.0, "soft": 0.5}.get(options.ties)
    labels = {"a": (1.0, 0.0), "b": (0.0, 1.0), "both_bad": (0.0, 0.0), "tie": (tie, tie)}
    return [
        _like(vote, side, label, pictures)
        for vote in votes
        for side, label in zip((vote.a, vote.b), labels[vote.choice], strict=True)
        if label is not None
    ]


def _like(vote: Vote, side: Shown, label: float, pictures: Pictures) -> _Made:
    record = Record(
        prompt=vote.prompt,
        images=(BytesImage(pictures.read(vote, side)),),
        kind="labels",
        values=(label,),
        rater=vote.rater,
        models=(side.model,),
        source=f"vote of {vote.rater} at {vote.time.isoformat()}",
    )
    return _Made(record=record, votes=(vote,), sides=(side,))


def _write(folder: Path, made: Sequence[_Made], options: DatasetOptions, used: Sequence[str]) -> None:
    records = [m.record for m in made]
    if options.form == "pickapic":
        records = [replace(r, rater=None if r.rater is None else str(user_number(r.rater))) for r in records]
        numbers = {v.rater: user_number(v.rater) for m in made for v in m.votes}
        (folder / RATERS).write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    write(records, data_path(folder, options.form), options.form)
    (folder / ORIGIN).write_text("".join(json.dumps(_origin(m)) + "\n" for m in made), encoding="utf-8")
    (folder / USED).write_text("".join(f"{prompt}\n" for prompt in used), encoding="utf-8")


def _origin(made: _Made) -> dict[str, Any]:
    first = made.votes[0]
    return {
        "prompt_id": first.prompt_id,
        "seed": first.seed,
        "models": [side.model for side in made.sides],
        "sha256": [side.sha256 for side in made.sides],
        "values": made.record.values,
        "raters": [v.rater for v in made.votes],
        "galleries": list(dict.fromkeys(v.gallery for v in made.votes)),
    }


def _written_at_once(output: Path, fill: Callable[[Path], None]) -> None:
    """Fill a folder beside its place and move it there; a failure leaves nothing."""
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}."))
    try:
        partial.chmod(0o755)  # mkdtemp makes it readable to its owner alone
        fill(partial)
        os.replace(partial, output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
