"""A profile encoder: any cached sequence about a person becomes tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from diffalign.personalize.encoders.about import About
from diffalign.personalize.encoders.base import (
    Encoded,
    UserEncoder,
    check_width,
    encoders,
    small,
)
from diffalign.personalize.encoders.perceiver import ReaderOptions


@encoders.register("profile")
@dataclass(frozen=True, kw_only=True)
class ProfileOptions(ReaderOptions):
    """Reads states about a person that were made before and cached.

    PPD (arXiv:2501.06655) takes the hidden states of all layers of a vision-language model at the last token
    of a profile that it wrote: 29 states of width 3584. Embedded text of a written profile does as well.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2501.06655"
    needs: ClassVar[frozenset[str]] = frozenset({"profile"})

    feature: int = 3584
    """Width of the states."""
    positions: int = 29
    """Longest sequence, whose places are told apart; 0 reads states as a set of any length."""
    depth: int = 2
    """Blocks of cross-attention, self-attention and network."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self.require(self.positions >= 0, "positions", "at least 0")

    def make(self, people: int = 0) -> ProfileEncoder:
        """See EncoderOptions."""
        return ProfileEncoder(self)


class ProfileEncoder(UserEncoder):
    """See ProfileOptions. Somebody without states is unknown."""

    def __init__(self, options: ProfileOptions) -> None:
        """Random weights."""
        super().__init__(options)
        self.shape = options
        self.inputs = nn.Sequential(
            nn.LayerNorm(options.feature), nn.Linear(options.feature, options.inner, bias=False)
        )
        self.places = small(options.positions, options.inner) if options.positions else None
        self.perceiver = options.perceiver()
        self.out = nn.Linear(options.inner, options.width)

    def encode(self, about: About) -> Encoded:
        """See UserEncoder."""
        profile = about.profile
        assert profile is not None  # encoded() has looked
        check_width(profile.states, self.shape.feature, "profiles", "profile")
        x = self.inputs(profile.states.float().masked_fill(~profile.mask[..., None], 0.0))
        if self.places is not None:
            length = x.shape[1]
            if length > len(self.places):
                raise ValueError(
                    f"profiles have {length} states and the user encoder tells {len(self.places)} places "
                    "apart: give shorter ones, or positions=0"
                )
            x = x + self.places[:length]
        tokens = self.out(self.perceiver(x, profile.mask))
        return Encoded(tokens=tokens, known=profile.mask.any(1))
