"""Splits that never move: where a prompt or a rater goes depends on a hash of it alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, TypeVar

from diffalign.data.records import DataError, Record

T = TypeVar("T")


def fraction(key: str, seed: int = 0) -> float:
    """Number in [0, 1) that depends on ``key`` and ``seed`` alone, the same on every machine."""
    digest = hashlib.sha256(f"{seed}\x00{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split_by(
    items: Iterable[T], key: Callable[[T], str], share: float, seed: int = 0
) -> tuple[list[T], list[T]]:
    """Split into (rest, held out), about ``share`` of the keys held out; items of one key stay together.

    Raises:
        DataError: ``share`` is not in [0, 1].
    """
    if not 0 <= share <= 1:
        raise DataError(f"the share held out is {share}; it must be in [0, 1], for example 0.1")
    rest: list[T] = []
    held: list[T] = []
    for item in items:
        (held if fraction(key(item), seed) < share else rest).append(item)
    return rest, held


def split_records(
    records: Iterable[Record], share: float = 0.1, *, by: Literal["prompt", "rater"] = "prompt", seed: int = 0
) -> tuple[list[Record], list[Record]]:
    """Split records into (train, held out) so that no prompt, or no rater, is on both sides.

    Raises:
        DataError: ``by`` is ``rater`` and a record does not say who judged; or ``by`` is neither.
    """
    if by not in ("prompt", "rater"):
        raise DataError(f"a split is by 'prompt' or by 'rater', not by {by!r}")
    return split_by(records, _prompt_key if by == "prompt" else _rater_key, share, seed)


def split_select_report(
    prompts: Sequence[str], select: float = 0.3, seed: int = 0
) -> tuple[list[str], list[str]]:
    """Split prompts into (select, report): choose checkpoints on the first, publish numbers of the second."""
    report, chosen = split_by(prompts, normalise, select, seed)
    return chosen, report


def normalise(prompt: str) -> str:
    """Prompt without case and surplus white space, so that trivial variants fall on the same side."""
    return " ".join(prompt.casefold().split())


def _prompt_key(record: Record) -> str:
    return normalise(record.prompt)


def _rater_key(record: Record) -> str:
    if record.rater is None:
        raise DataError(
            f"{record.source or 'record'}: no rater is named, so these data cannot be split by rater"
        )
    return record.rater
