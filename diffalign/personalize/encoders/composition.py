"""Another encoder, plus what is a known person's own."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import nn

from diffalign.personalize.encoders.about import About
from diffalign.personalize.encoders.base import Encoded, EncoderOptions, UserEncoder, encoders, name_of
from diffalign.personalize.encoders.few_shot import FewShotOptions


@encoders.register("composition")
@dataclass(frozen=True, kw_only=True)
class CompositionOptions(EncoderOptions):
    """tokens = encoder(person) + delta[person]; deltas start at zero, and someone new has none.

    ``tokens`` and ``width`` are those of the encoder within.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2501.06655"
    needs: ClassVar[frozenset[str]] = frozenset({"rows"})

    encoder: EncoderOptions = field(default_factory=FewShotOptions)
    """The encoder within: a block with its name and options."""

    def __post_init__(self) -> None:
        """Take over what the encoder within is like.

        Raises:
            ValueError: it keeps people in a table of its own already.
        """
        for name, usual in (("tokens", EncoderOptions.tokens), ("width", EncoderOptions.width)):
            within = getattr(self.encoder, name)
            self.require(getattr(self, name) in (usual, within), name, f"{within}, as in the encoder within")
            object.__setattr__(self, name, within)
        super().__post_init__()
        if "rows" in self.encoder.needs:
            who = name_of(type(self.encoder))
            raise ValueError(
                f"composition.encoder is {who}, which has a row for each person already: take it alone"
            )
        object.__setattr__(self, "needs", self.needs | self.encoder.needs)

    def make(self, people: int = 0) -> Composition:
        """See EncoderOptions."""
        return Composition(self, people)


class Composition(UserEncoder):
    """See CompositionOptions. A row of -1 has no delta."""

    personal = ("people",)

    def __init__(self, options: CompositionOptions, people: int) -> None:
        """Deltas are zero."""
        super().__init__(options)
        self.encoder = options.encoder.make()
        self.people = nn.Parameter(torch.zeros(people, options.tokens, options.width))

    def encode(self, about: About) -> Encoded:
        """See UserEncoder."""
        found = self.encoder.encode(about)
        rows = about.rows
        assert rows is not None  # encoded() has looked
        if len(self.people) == 0:
            return found
        own = self.people[rows.clamp(min=0)] * (rows >= 0)[:, None, None]
        return replace(found, tokens=found.tokens + own)
