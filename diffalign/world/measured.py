"""Towers of the shapes world that see what the oracle measures: features for encoders of votes.

The shipped scorer has learnt words and one taste, and hardly sees shade or saturation; whoever wants to know
what an encoder of people can do, and not what a picture tower lets it see, names
``diffalign.world.measured:measured``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from diffalign.world.grammar import WORDS, parse
from diffalign.world.oracle import measure, obeys
from diffalign.world.raters import AXES, LIMIT
from diffalign.world.scorers import WorldScorer

WIDTH = len(AXES) + len(WORDS) + 1
"""Width of the features of pictures (axes first) and of prompts (words behind them)."""


class Measured(WorldScorer):
    """Unit features of pictures (axes that people may care for) and of prompts (their words).

    As a scorer it says whether a picture shows what its prompt asks, as ``shapes-obedience`` does.
    """

    def __init__(self) -> None:
        """Nothing to choose."""
        super().__init__("shapes-measured", lambda x, p: obeys(measure(x), p).all.float())

    def encode_images(self, x01: Tensor) -> Tensor:
        """(B, WIDTH) unit features of (B, 3, 64, 64) pictures in [0, 1]: axes cut at LIMIT, over
        LIMIT sqrt(axes), and what is missing to length 1."""
        found = measure(x01.cpu())
        axes = torch.stack([axis(found).clamp(-LIMIT, LIMIT) for axis in AXES.values()], 1)
        axes = torch.where(found.recognised[:, None], axes, 0.0) / (LIMIT * len(AXES) ** 0.5)
        return _whole(axes, 0)

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """(B, WIDTH) unit features of B prompts of the world's grammar: which words they have.

        Raises:
            ValueError: a prompt outside the grammar.
        """
        said = [set(str(parse(prompt)).split()) for prompt in prompts]
        words = torch.tensor([[float(word in some) for word in WORDS] for some in said])
        return _whole(words / len(WORDS) ** 0.5, len(AXES))


class MeasuredLoader:
    """What an address names: makes the towers, which have no weights."""

    about = Measured

    def load(self, weights: Path | None, *, device: str | torch.device, dtype: torch.dtype) -> Measured:
        """Make them; weights, device and dtype do not matter."""
        return Measured()


measured = MeasuredLoader()


def _whole(part: Tensor, place: int) -> Tensor:
    """(B, WIDTH) rows of length 1 with (B, n) ``part`` at ``place``, the last entry filling them up."""
    rows = torch.zeros(len(part), WIDTH)
    rows[:, place : place + part.shape[1]] = part
    rows[:, -1] = (1 - part.square().sum(1)).clamp(min=0).sqrt()
    return rows
