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


class Described(Protocol):
    """What every reward model says of itself."""

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
    """Whether its scores have a gradient with respect to the pictures (or latents)."""
    licence: str
    citation: str


@runtime_checkable
class Scorer(Described, Protocol):
    """A reward model: any object with these attributes. ``scorers.base.ScorerBase`` adds the conveniences."""

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
class Details:
    """What a scorer says of B pictures at once, on its device; ``ScorerBase`` makes a ScoreOutput of it."""

    score: Tensor
    """(B,) the main score."""
    dims: Mapping[str, Tensor] = field(default_factory=dict)
    """(B,) per dimension, for scorers that have several."""
    raw: Tensor | None = None
    """(B,) unscaled score (a cosine, say)."""
    std: Tensor | None = None
    """(B,) the scorer's own uncertainty."""
    status: Sequence[str] | None = None
    """B words, ``"ok"`` or what went wrong."""


@dataclass(kw_only=True)
class ScoreOutput:
    """Scores of B pictures, on the CPU, in the order of the pictures."""

    score: Tensor
    """(B,) float32, the main score; (M, N) of M pictures with N prompts each after ``cross=True``."""
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
    higher_better: bool = True
    groups: tuple[int, ...] | None = None
    """Group of each picture, where they were given in groups."""

    def prob(self, groups: Sequence[int] | Tensor | None = None) -> Tensor:
        """(B,) chance of each picture to be the preferred one of its group: softmax of the group's scores.

        Args:
            groups: group of each picture; None takes those that the pictures were given in, else one.

        Raises:
            ValueError: not one group number per score, or a cross product.
        """
        logits = self._better()[None, :].masked_fill(~self._same(groups), -torch.inf)
        return logits.log_softmax(1).diagonal().exp()

    def rank(self, groups: Sequence[int] | Tensor | None = None) -> Tensor:
        """(B,) int64 place of each picture in its group, 1 for the best; equal scores share the better place.

        Args:
            groups: see ``prob``.

        Raises:
            ValueError: not one group number per score, or a cross product.
        """
        score, same = self._better(), self._same(groups)
        return 1 + (same & (score[None, :] > score[:, None])).sum(1)

    def ties(self, eps: float = 0.0) -> Tensor:
        """(P, 2) int64 numbers i < j of the pictures whose scores differ by at most ``eps``.

        Raises:
            ValueError: a negative ``eps``, or a cross product.
        """
        if eps < 0:
            raise ValueError(f"eps must not be negative, got {eps}")
        score = self._better()
        return ((score[None, :] - score[:, None]).abs() <= eps).triu(1).nonzero()

    def _better(self) -> Tensor:
        """(B,) scores of which more is better."""
        if self.score.ndim != 1:
            shape = tuple(self.score.shape)
            raise ValueError(
                f"these are scores {shape} of all pictures with all prompts; take one column of them"
            )
        return self.score if self.higher_better else -self.score

    def _same(self, groups: Sequence[int] | Tensor | None) -> Tensor:
        """(B, B) whether two pictures are in one group."""
        if groups is None:
            groups = self.groups or [0] * len(self.score)
        number = torch.as_tensor(groups)
        if number.shape != self.score.shape:
            raise ValueError(
                f"{len(number)} group numbers for {len(self.score)} scores; give one number per picture"
            )
        return number[:, None] == number[None, :]


@dataclass(kw_only=True)
class PairOutput:
    """Comparison of B pairs of pictures, on the CPU."""

    logit: Tensor
    """(B,) float32, how much better the first picture is, in units of the scorer's calibration."""
    prob: Tensor
    """(B,) chance that the first is preferred to the second, sigmoid(logit) as a rule."""
    tie_prob: Tensor | None = None
    """(B,) chance of a tie, where the scorer knows one; 0 or 1 where only its ``tie_threshold`` decides."""
    order_agreement: Tensor | None = None
    """(B,) 1 where both orders of the pair gave the same verdict, else 0, for scorers that look twice."""
    status: tuple[str, ...] | None = None
    """B words, ``"ok"`` or what went wrong, for scorers that may fail on a pair."""
    meta: Mapping[str, str] = field(default_factory=dict)
    """Which scorer in which precision compared."""
