"""A direction encoder: a mixture of named rewards becomes tokens, so that one model serves all mixtures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffalign.personalize.encoders.about import About
from diffalign.personalize.encoders.base import Encoded, EncoderOptions, UserEncoder, check_width, encoders


@encoders.register("direction")
@dataclass(frozen=True, kw_only=True)
class DirectionOptions(EncoderOptions):
    """A unit vector over named scorers becomes tokens (people as reward functions, PPD, arXiv:2501.06655).

    Pairs are labelled anew for a direction that is drawn for each (``sample_directions``, ``relabel``).
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2501.06655"
    needs: ClassVar[frozenset[str]] = frozenset({"direction"})

    scorers: tuple[str, ...] = ()
    """Names of the axes, in the order of the vector; at least one."""
    hidden: int = 256
    """Width of the hidden layers."""

    def __post_init__(self) -> None:
        """Check the names."""
        super().__post_init__()
        object.__setattr__(self, "scorers", tuple(self.scorers))
        named = len(self.scorers) > 0 and len(set(self.scorers)) == len(self.scorers)
        self.require(named, "scorers", "names of scorers, each once")
        self.require(self.hidden >= 1, "hidden", "at least 1")

    def make(self, people: int = 0) -> Direction:
        """See EncoderOptions."""
        return Direction(self)


class Direction(UserEncoder):
    """See DirectionOptions. The zero vector is nobody's."""

    def __init__(self, options: DirectionOptions) -> None:
        """Random weights."""
        super().__init__(options)
        self.axes = options.scorers
        self.net = nn.Sequential(
            nn.Linear(len(options.scorers), options.hidden), nn.GELU(),
            nn.Linear(options.hidden, options.hidden), nn.GELU(),
            nn.Linear(options.hidden, options.tokens * options.width),
        )  # fmt: skip

    def encode(self, about: About) -> Encoded:
        """See UserEncoder."""
        direction = about.direction
        assert direction is not None  # encoded() has looked
        check_width(direction, len(self.axes), "directions", "direction")
        x = direction.float() * len(self.axes) ** 0.5  # entries of about unit size
        shape = (self.options.tokens, self.options.width)
        return Encoded(tokens=self.net(x).unflatten(-1, shape), known=direction.any(1))


def parse_direction(text: str, scorers: Sequence[str]) -> Tensor:
    """(A,) unit vector of ``hps=0.8,aesthetic=0.6``; scorers that are not named count 0.

    Raises:
        ValueError: not of this form, an unknown name, one named twice, or all weights 0.
    """
    found: dict[str, float] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, _, number = part.rpartition("=")
        name = name.strip()
        if name not in scorers or name in found:
            raise ValueError(
                f"direction {text!r}: {part!r} does not name one of {', '.join(scorers)} for the first time; "
                "write scorer=weight,scorer=weight"
            )
        found[name] = _number(number, text)
    vector = torch.tensor([found.get(name, 0.0) for name in scorers])
    if not bool(vector.any()):
        raise ValueError(f"direction {text!r} points nowhere: give at least one weight other than 0")
    return F.normalize(vector, dim=0)


def sample_directions(
    count: int, axes: int, generator: torch.Generator, *, signed: bool = False, single: float = 0.25
) -> Tensor:
    """(count, axes) unit vectors on the CPU, evenly spread over the sphere, or over its part without signs.

    Args:
        count: how many.
        axes: how many scorers.
        generator: where the numbers come from.
        signed: whether weights may be negative.
        single: share of directions that are a single scorer, which corners of the sphere are too rare for.
    """
    found = torch.randn(count, axes, generator=generator)
    found = F.normalize(found if signed else found.abs(), dim=1)
    one = F.one_hot(torch.randint(axes, (count,), generator=generator), axes).to(found)
    signs = found.gather(1, one.argmax(1, keepdim=True)).sign()
    chosen = torch.rand(count, generator=generator) < single
    return torch.where(chosen[:, None], one * signs, found)


def relabel(gaps: Tensor, direction: Tensor) -> Tensor:
    """(P,) weighted gaps d . g of P pairs under a direction for each: above 0 where the first side wins now.

    Args:
        gaps: (P, A) scores of the first side less those of the second, by scorer; divide each column by its
            root mean square over the data, since scorers have no common unit.
        direction: (P, A) unit vectors.

    Raises:
        ValueError: the shapes differ.
    """
    if gaps.shape != direction.shape:
        raise ValueError(
            f"gaps are {tuple(gaps.shape)} and directions {tuple(direction.shape)}; they must be alike"
        )
    return (gaps * direction.to(gaps)).sum(1)


def _number(text: str, whole: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"direction {whole!r}: {text!r} is no finite number; write scorer=weight")
    return value
