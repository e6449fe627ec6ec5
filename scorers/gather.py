"""What a scorer says of a call's pictures, put together again from chunks and from both sides of pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from scorers.protocol import Details


def gather(parts: Iterator[tuple[list[int], Details]]) -> Details:
    """Put the chunks together again, in the order of the pictures, on the CPU.

    A chunk may lack what others have (a server that gave it no score at all): NaN stands there.
    """
    found = list(parts)
    order = [i for rows, _ in found for i in rows]
    pieces = [details for _, details in found]
    names = dict.fromkeys(name for d in pieces for name in d.dims)
    status = [word for d in pieces for word in d.status or ["ok"] * len(d.score)]
    return Details(
        score=_placed([d.score for d in pieces], order),
        dims={name: _placed([_there(d.dims.get(name), d) for d in pieces], order) for name in names},
        raw=_optional([d.raw for d in pieces], pieces, order),
        std=_optional([d.std for d in pieces], pieces, order),
        status=_ordered(status, order) if any(d.status for d in pieces) else None,
    )


def either(a: Sequence[str] | None, b: Sequence[str] | None) -> tuple[str, ...] | None:
    """What went wrong with either side of pairs."""
    if a is None or b is None:
        return None
    return tuple(x if x != "ok" else y for x, y in zip(a, b, strict=True))


def _there(part: Tensor | None, of: Details) -> Tensor:
    return torch.full_like(of.score, torch.nan) if part is None else part


def _optional(
    parts: Sequence[Tensor | None], pieces: Sequence[Details], order: Sequence[int]
) -> Tensor | None:
    if all(part is None for part in parts):
        return None
    return _placed([_there(part, d) for part, d in zip(parts, pieces, strict=True)], order)


def _ordered(words: Sequence[str], order: Sequence[int]) -> list[str]:
    return [word for _, word in sorted(zip(order, words, strict=True))]


def _placed(parts: Sequence[Tensor], order: Sequence[int]) -> Tensor:
    rows = torch.cat(list(parts)).float().cpu()
    out = torch.empty_like(rows)
    out[torch.tensor(order)] = rows
    return out
