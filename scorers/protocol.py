"""What a scorer is: the attributes and the one method of every reward model, and what a call returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

Need = Literal["prompt", "reference", "timestep", "group", "user"]
Kind = Literal["pointwise", "pairwise", "groupwise", "set"]
Space = Literal["pixel", "latent"]


@runtime_checkable
class Scorer(Protocol):
    """A reward model: any object with these attributes. ``scorers.base.ScorerBase`` adds the conveniences."""

    name: str
    version: str
    dims: tuple[str, ...]
    """Names of what is scored, the main one first, e.g. ``("preference",)``."""
    range: tuple[float, float]
    """Smallest and largest score that can occur."""
    higher_better: bool
    needs: frozenset[Need]
    kind: Kind
    space: Space
    differentiable: bool
    """Whether ``score_tensor`` has a gradient with respect to the pictures."""
    licence: str
    citation: str

    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score pictures (B, 3, H, W) in [0, 1], RGB, for B prompts: (B,) float32.

        Differentiable with respect to ``x01`` where ``differentiable`` says so; ``torch.no_grad`` is left to
        the caller.
        """
        ...


class ScorerLoader(Protocol):
    """What is registered under a scorer's name: usually the class itself, with ``load`` as a class method."""

    def load(self, weights: Path | None, *, device: str | torch.device, dtype: torch.dtype) -> Scorer:
        """Load the scorer from local weights onto a device. Never uses the network."""
        ...


@dataclass(kw_only=True)
class ScoreOutput:
    """Scores of B pictures, on the CPU, in the order of the pictures."""

    score: Tensor
    """(B,) float32, the main score."""
    dims: Mapping[str, Tensor] = field(default_factory=dict)
    """(B,) per dimension, for scorers that have several."""
    raw: Tensor | None = None
    """(B,) unscaled score (a cosine, say), where the scorer has one."""
    std: Tensor | None = None
    """(B,) the scorer's own uncertainty, where it has one."""
    status: tuple[str, ...] | None = None
    """B words, ``"ok"`` or what went wrong, for scorers that may fail on a picture."""
    meta: Mapping[str, str] = field(default_factory=dict)
    """Which scorer in which precision gave these scores."""

    def prob(self, groups: Sequence[int] | Tensor) -> Tensor:
        """(B,) chance of each picture to be the preferred one of its group: softmax of the group's scores.

        Raises:
            ValueError: not one group number per score.
        """
        number = torch.as_tensor(groups)
        if number.shape != self.score.shape:
            raise ValueError(
                f"{len(number)} group numbers for {len(self.score)} scores; give one number per picture"
            )
        same = number[:, None] == number[None, :]
        logits = self.score[None, :].expand(len(number), -1).masked_fill(~same, -torch.inf)
        return logits.log_softmax(1).diagonal().exp()
