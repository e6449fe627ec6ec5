"""Weights of people or clusters so that the worst served count most (MaxMin).

max over models of the least utility over groups: exponentiated gradient on the groups' weights, as in Group
DRO (Sagawa et al. 2020, arXiv:1911.08731, algorithm 1) and, for preferences, MaxMin-RLHF (Chakraborty et al.
2024, arXiv:2402.08925).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class MaxMin:
    """How group weights move."""

    step: float = 0.01
    """Rate eta of the exponentiated gradient, per optimiser step, above 0."""
    floor: float = 0.1
    """Share of the weight that all groups get alike, in [0, 1]; 1 weighs them equally for ever."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: an option out of range.
        """
        if not 0 < self.step < math.inf or not 0 <= self.floor <= 1:
            raise ValueError(
                f"step is {self.step} and floor {self.floor}; step must be above 0, floor in [0, 1]"
            )

    def begin(self, groups: int) -> Tensor:
        """(G,) float64 equal weights.

        Raises:
            ValueError: no groups.
        """
        if groups < 1:
            raise ValueError("there are no groups to weigh: give records that name their raters")
        return torch.full((groups,), 1 / groups, dtype=torch.float64)

    def update(self, q: Tensor, sums: Tensor, counts: Tensor) -> Tensor:
        """(G,) weights after a step: q_g exp(eta mean loss_g), normalised, where the step saw the group.

        Args:
            q: (G,) weights, as ``begin`` or this made them: keep them in the checkpoint.
            sums: (G,) summed losses of each group's units in the whole step, over all processes.
            counts: (G,) numbers of units.
        """
        seen = counts > 0
        mean = torch.where(seen, sums / counts.clamp(min=1), 0.0).to(q)
        # the largest of the seen is taken off, as one factor for all leaves the weights and avoids overflow
        shift = torch.where(seen, mean, -math.inf).max()
        grown = q * torch.where(seen, self.step * (mean - shift), 0.0).exp()
        # among the seen alone: a group that no unit of the step is from keeps its share
        grown = torch.where(seen, grown * (q * seen).sum() / (grown * seen).sum(), q)
        return grown / grown.sum()

    def shares(self, q: Tensor) -> Tensor:
        """(G,) weights with the floor."""
        return (1 - self.floor) * q + self.floor / len(q)


def group_sums(loss: Tensor, group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """(G,) sums of (U,) losses by (U,) int64 group, and (G,) counts, in float64; add them over processes."""
    sums = torch.zeros(groups, dtype=torch.float64, device=loss.device)
    counts = torch.zeros_like(sums)
    sums.index_add_(0, group, loss.detach().double())
    counts.index_add_(0, group, torch.ones_like(loss, dtype=torch.float64))
    return sums, counts


def unit_weights(shares: Tensor, group: Tensor, counts: Tensor) -> Tensor:
    """(U,) weights shares_g / counts_g: their weighted mean of losses is that of the groups' means.

    Args:
        shares: (G,) from ``MaxMin.shares``.
        group: (U,) int64 group of each unit.
        counts: (G,) units of each group in the whole step, over all processes; above 0 at groups that occur.
    """
    return (shares / counts.clamp(min=1).to(shares))[group]
