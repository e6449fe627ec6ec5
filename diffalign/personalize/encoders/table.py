"""A table: every known person has tokens of their own, or weights of a few prototypes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from diffalign.personalize.encoders.about import About
from diffalign.personalize.encoders.base import STD, Encoded, EncoderOptions, UserEncoder, encoders, small


@encoders.register("table")
@dataclass(frozen=True, kw_only=True)
class TableOptions(EncoderOptions):
    """Learned tokens for each known person; someone new is fitted from votes (``personalize.new_user``).

    With prototypes a person is a point of their simplex, softmax(row) @ prototypes (PAL, arXiv:2406.08469,
    model A, with token sequences for points): a person then costs that many numbers.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2406.08469"
    needs: ClassVar[frozenset[str]] = frozenset({"rows"})

    prototypes: int = 0
    """P, number of prototypes that people are mixtures of; 0 gives every person tokens of their own."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self.require(self.prototypes == 0 or self.prototypes >= 2, "prototypes", "0, or 2 and more")

    def make(self, people: int = 0) -> Table:
        """See EncoderOptions."""
        return Table(self, people)


class Table(UserEncoder):
    """See TableOptions. Row -1 is somebody unknown."""

    personal = ("people",)

    def __init__(self, options: TableOptions, people: int) -> None:
        """People's tokens from N(0, 0.02^2); weights of prototypes from N(0, 1), as PAL has them."""
        super().__init__(options)
        k, d, p = options.tokens, options.width, options.prototypes
        self.prototypes = small(p, k, d) if p else None
        self.people = nn.Parameter(torch.randn(people, p) if p else STD * torch.randn(people, k, d))

    def encode(self, about: About) -> Encoded:
        """See UserEncoder."""
        rows = about.rows
        assert rows is not None  # encoded() has looked
        if len(self.people) == 0:
            nobody = self.nobody.expand(len(rows), -1, -1)
            return Encoded(tokens=nobody, known=torch.zeros_like(rows, dtype=torch.bool))
        return Encoded(tokens=self.tokens(self.people[rows.clamp(min=0)]), known=rows >= 0)

    def tokens(self, people: Tensor) -> Tensor:
        """(B, K, D) tokens of people's rows: of (B, P) weights before their softmax, or (B, K, D) as is."""
        if self.prototypes is None:
            return people
        return torch.einsum("bp,pkd->bkd", people.softmax(-1), self.prototypes)
