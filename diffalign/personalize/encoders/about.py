"""What is known of people: the input of every user encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T", "Examples", "Profile", "About")


@dataclass(frozen=True, kw_only=True)
class Examples:
    """E votes of each of B people, as features of a frozen tower; ties are left out."""

    prompt: Tensor
    """(B, E, F) unit features of the prompts."""
    winner: Tensor
    """(B, E, F) unit features of the pictures that were preferred."""
    loser: Tensor
    """(B, E, F) of the others."""
    mask: Tensor
    """(B, E) bool, False at padding, whose features may be anything."""

    def __post_init__(self) -> None:
        """Check the shapes.

        Raises:
            ValueError: they do not belong together.
        """
        shape = self.winner.shape
        if len(shape) != 3 or {self.prompt.shape, self.loser.shape} != {shape}:
            given = ", ".join(str(tuple(x.shape)) for x in (self.prompt, self.winner, self.loser))
            raise ValueError(
                f"votes have features of shapes {given}; prompts, winners and losers must each be (people, "
                "votes, features)"
            )
        _check_mask(self.mask, shape, "votes")

    def swapped(self) -> Examples:
        """The same votes the other way round: a person of the opposite taste."""
        return replace(self, winner=self.loser, loser=self.winner)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A sequence of T states for each of B people: a language model's, or embeddings of a written profile."""

    states: Tensor
    """(B, T, F)."""
    mask: Tensor
    """(B, T) bool, False at padding."""

    def __post_init__(self) -> None:
        """Check the shapes.

        Raises:
            ValueError: they do not belong together.
        """
        if self.states.ndim != 3:
            raise ValueError(
                f"profiles are {tuple(self.states.shape)}; they must be (people, states, features)"
            )
        _check_mask(self.mask, self.states.shape, "profiles")


@dataclass(frozen=True, kw_only=True)
class About:
    """What is known of B people; an encoder says by ``needs`` which of it it looks at."""

    rows: Tensor | None = None
    """(B,) int64 places in the table of known people, -1 for somebody who is not in it."""
    examples: Examples | None = None
    profile: Profile | None = None
    direction: Tensor | None = None
    """(B, A) unit vectors over named scorers."""

    def to(self, device: torch.device | str) -> About:
        """The same on a device."""
        return _mapped(self, lambda x: x.to(device))

    def take(self, index: Tensor) -> About:
        """The people at (C,) int64 places, for example each row's other person."""
        return _mapped(self, lambda x: x[index])


def pad_examples(votes: Sequence[Sequence[tuple[Tensor, Tensor, Tensor]]]) -> Examples:
    """Votes of B people with different numbers of them, padded at the end.

    Args:
        votes: for each person (prompt, winner, loser) features, (F,) each; a person may have none.

    Raises:
        ValueError: nobody has a vote, so that the width is unknown, or features differ in shape.
    """
    width = next((vote[0].shape for one in votes for vote in one), None)
    if width is None:
        raise ValueError("none of these people has a vote: there is nothing to encode")
    longest = max(len(one) for one in votes)
    wrong = [tuple(x.shape) for one in votes for vote in one for x in vote if x.shape != width]
    if wrong or len(width) != 1:
        raise ValueError(f"votes have features of shapes {tuple(width)} and {wrong}; all must be alike, (F,)")
    sides = torch.zeros(3, len(votes), longest, *width)
    mask = torch.zeros(len(votes), longest, dtype=torch.bool)
    for b, one in enumerate(votes):
        mask[b, : len(one)] = True
        for e, vote in enumerate(one):
            sides[:, b, e] = torch.stack(vote).float()
    return Examples(prompt=sides[0], winner=sides[1], loser=sides[2], mask=mask)


def _check_mask(mask: Tensor, shape: Sequence[int], what: str) -> None:
    if mask.shape != tuple(shape[:2]) or mask.dtype != torch.bool:
        raise ValueError(
            f"the mask of {what} is {tuple(mask.shape)} {mask.dtype}; it must be {tuple(shape[:2])} bool"
        )


def _mapped(of: T, change: Callable[[Tensor], Tensor]) -> T:
    """The same with every tensor changed."""
    found: dict[str, Any] = {}
    for one in fields(of):
        value = getattr(of, one.name)
        nested = isinstance(value, Examples | Profile)
        found[one.name] = None if value is None else _mapped(value, change) if nested else change(value)
    return type(of)(**found)
