"""Scorers of any picture, made of plain arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from scorers.base import ScorerBase
from scorers.protocol import Details


class Channel(ScorerBase):
    """Mean of one colour channel; counts the pictures that it saw."""

    name = "channel"
    licence = "Apache-2.0"
    citation = "none"
    channel = 0

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        self.seen += prompts
        return x01[:, self.channel].mean((1, 2))

    @classmethod
    def load(cls, weights: Path | None, *, device: str | torch.device, dtype: torch.dtype) -> Channel:
        return cls()


class Red(Channel):
    """The more red the better."""


class Green(Channel):
    """The more green the better."""

    channel = 1


class Dark(Channel):
    """Blue counts against a picture."""

    channel = 2
    higher_better = False


class Broken(Channel):
    """Scores that are no numbers."""

    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        return torch.full((len(x01),), torch.nan)


class Blind(Channel):
    """Needs no prompt, and says why it has no score."""

    needs = frozenset()

    def details(self, x01: Tensor, prompts: Sequence[str]) -> Details:
        return Details(score=torch.full((len(x01),), torch.nan), status=["too dark"] * len(x01))


class Pairwise(Channel):
    """Has no score of a single picture."""

    kind = "pairwise"
