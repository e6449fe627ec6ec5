"""Scorers of sets: how different the pictures of one prompt are from each other."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from scorers.base import ScorerBase, check_batch
from scorers.protocol import Details, Kind, Need


class SetScorer(ScorerBase):
    """Scores the pictures of each prompt as one set: all of them get the same number.

    The prompts only say which pictures belong together; none at all means that all do. Order does not count.
    Subclasses write ``features`` and ``of_set``.
    """

    kind: Kind = "set"
    needs: frozenset[Need] = frozenset({"group"})
    dims: tuple[str, ...] = ("diversity",)

    @abstractmethod
    def features(self, x01: Tensor) -> Tensor:
        """(B, D) float32 features of pictures (B, 3, H, W) in [0, 1]."""

    @abstractmethod
    def of_set(self, features: Tensor) -> Tensor:
        """Scalar diversity of one set's (n, D) features, n at least 2."""

    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,) float32: of each picture the diversity of the batch's pictures that have its prompt.

        Differentiable with respect to the pictures where ``differentiable`` says so.

        Raises:
            ValueError: a prompt with one picture only; wrong shapes.
        """
        check_batch(x01, prompts)
        return self.of_groups(self.features(x01), prompts)

    def of_groups(self, features: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,) float32 diversity of each row's set, given (B, D) features.

        Raises:
            ValueError: a prompt with one picture only.
        """
        rows: dict[str, list[int]] = {}
        for i, prompt in enumerate(prompts):
            rows.setdefault(prompt, []).append(i)
        lonely = next((p for p, mine in rows.items() if len(mine) < 2), None)
        if lonely is not None:
            raise ValueError(
                f"{self.name} compares the pictures of a prompt, and {lonely!r} has one only; make more seeds"
            )
        values = {p: self.of_set(features[mine]).float() for p, mine in rows.items()}
        return torch.stack([values[p] for p in prompts])

    def cross_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        """Refuse, as prompts only group pictures here.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{self.name} scores sets of pictures, so there is nothing to cross with prompts")

    def _detailed(
        self, pictures: Sequence[Tensor], texts: Sequence[str], chunk: int
    ) -> Iterator[tuple[list[int], Details]]:
        """Encode in chunks, but score whole sets."""
        found: dict[int, Tensor] = {}
        with torch.no_grad():
            for rows, x01 in self._stacks(pictures, chunk):
                found |= dict(zip(rows, self.features(x01), strict=True))
            lengths = {len(f) for f in found.values()}
            if len(lengths) > 1:
                raise ValueError(f"{self.name} compares pictures of one size only; resize them first")
            order = range(len(pictures))
            yield list(order), Details(score=self.of_groups(torch.stack([found[i] for i in order]), texts))
