"""Scores of many pictures where a bad one must not spoil the others: a result or a reason for each."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from scorers.base import ScorerBase
from scorers.images import ImageLike, to_tensor
from scorers.protocol import Details, Scorer

OK = "ok"
LOST = "lost: "
"""How the status of a picture begins to which a server gave no answer; it is no result, and asked again."""
FAULT = "failed: the server could not score it"
"""How the status of a picture begins over which a server stumbled; a later try may succeed."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one picture."""

    score: float | None
    """The main score; None where there is none."""
    status: str = OK
    """``ok``, the scorer's own word, or ``failed: `` and the reason."""
    raw: float | None = None
    std: float | None = None
    dims: Mapping[str, float] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether there is a score."""
        return self.score is not None

    def row(self) -> dict[str, Any]:
        """Fields for JSON, without what is not there."""
        fields = asdict(self)
        return {k: v for k, v in fields.items() if k in ("score", "status") or v not in (None, {})}


def failed(reason: object) -> Outcome:
    """No score, and why."""
    return Outcome(score=None, status="failed: " + " ".join(str(reason).split()))


def lost(reason: object) -> Outcome:
    """No answer, and why."""
    return Outcome(score=None, status=LOST + " ".join(str(reason).split()))


def read_each(images: Sequence[ImageLike]) -> list[Tensor | Outcome]:
    """Each picture as (3, H, W) in [0, 1], or why there is none."""
    found: list[Tensor | Outcome] = []
    for i, image in enumerate(images):
        try:
            found.append(to_tensor(image, where=f"image {i}"))
        except (ValueError, TypeError, OSError) as error:
            found.append(failed(error))
    return found


def score_each(
    scorer: Scorer, pictures: Sequence[Tensor | Outcome], prompts: Sequence[str], *, chunk: int = 32
) -> list[Outcome]:
    """Score pictures, as many of a size at once as ``chunk`` allows; what cannot be scored says why.

    Args:
        scorer: pointwise.
        pictures: (3, H, W) in [0, 1], or an Outcome, which is passed through.
        prompts: one per picture.
        chunk: how many pictures go through the network at once.

    Raises:
        ValueError: not one prompt per picture.
    """
    if len(pictures) != len(prompts):
        raise ValueError(f"{len(pictures)} pictures but {len(prompts)} prompts; give one per picture")
    found: list[Outcome | None] = [None] * len(pictures)
    sizes: dict[torch.Size, list[int]] = defaultdict(list)
    for i, (picture, prompt) in enumerate(zip(pictures, prompts, strict=True)):
        if isinstance(picture, Outcome):
            found[i] = picture
        elif "prompt" in scorer.needs and not prompt.strip():
            found[i] = failed("the prompt is empty; a score needs to know what was asked for")
        else:
            sizes[picture.shape].append(i)
    for rows in sizes.values():
        for part in (rows[i : i + chunk] for i in range(0, len(rows), chunk)):
            x01 = torch.stack([p for i in part if isinstance(p := pictures[i], Tensor)])
            for i, outcome in zip(part, _batch(scorer, x01, [prompts[i] for i in part]), strict=True):
                found[i] = outcome
    return [outcome for outcome in found if outcome is not None]


def _batch(scorer: Scorer, x01: Tensor, prompts: list[str]) -> list[Outcome]:
    """Outcomes of a batch; one that is refused is halved until the culprit stands alone."""
    try:
        return _outcomes(_details(scorer, x01, prompts))
    except (ValueError, TypeError) as error:
        if len(prompts) == 1:
            return [failed(error)]
        half = len(prompts) // 2
        return _batch(scorer, x01[:half], prompts[:half]) + _batch(scorer, x01[half:], prompts[half:])


@torch.no_grad()
def _details(scorer: Scorer, x01: Tensor, prompts: list[str]) -> Details:
    device = device_of(scorer)
    if isinstance(scorer, ScorerBase):
        return scorer.details(x01.to(device), prompts)
    return Details(score=scorer.score_tensor(x01.to(device), prompts))


def device_of(scorer: Scorer) -> torch.device:
    """Where the scorer's parameters are; the CPU if it has none."""
    if isinstance(scorer, nn.Module):
        return next((p.device for p in scorer.parameters()), torch.device("cpu"))
    return torch.device("cpu")


def _outcomes(details: Details) -> list[Outcome]:
    score, dims = _numbers(details.score), {k: _numbers(v) for k, v in details.dims.items()}
    raw, std = (None if v is None else _numbers(v) for v in (details.raw, details.std))
    rows = []
    for i, value in enumerate(score):
        word = OK if details.status is None else details.status[i]
        if not math.isfinite(value):
            rows.append(failed(f"the score is {value}") if word == OK else Outcome(score=None, status=word))
            continue
        rows.append(
            Outcome(
                score=value, status=word, raw=_known(raw, i), std=_known(std, i),
                dims={k: v[i] for k, v in dims.items() if math.isfinite(v[i])},
            )
        )  # fmt: skip
    return rows


def _numbers(column: Tensor) -> list[float]:
    """On the host first: Apple's GPUs have no double precision."""
    found: list[float] = column.cpu().double().tolist()
    return found


def _known(values: Sequence[float] | None, i: int) -> float | None:
    """A number that JSON can hold, or None."""
    return values[i] if values is not None and math.isfinite(values[i]) else None
