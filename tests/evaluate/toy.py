"""Scorers of any picture for tests, named ``tests.evaluate.toy:Brightness``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from scorers.base import ScorerBase


class Brightness(ScorerBase):
    """Mean of a picture."""

    name = "brightness"
    needs = frozenset()
    licence = citation = "none"

    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        return x01.mean((1, 2, 3))

    @classmethod
    def load(cls, weights: Path | None, *, device: str | torch.device, dtype: torch.dtype) -> Brightness:
        return cls()


class Redness(Brightness):
    """Mean of the red channel."""

    name = "redness"

    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        return x01[:, 0].mean((1, 2))


class Broken(Brightness):
    """Fails on the last picture of a batch."""

    name = "broken"

    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        scores = x01.mean((1, 2, 3))
        scores[-1] = torch.nan
        return scores
