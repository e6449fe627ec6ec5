"""What all pair objectives share: winners and losers side by side, the canonical logit, and the metrics."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffalign.objectives.base import Denoised, Metrics


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """P pairs; of a tie the row that came first counts as winner. All tensors are (P,)."""

    error_w: Tensor
    error_l: Tensor
    gap_w: Tensor
    """a_w = e_policy(w) - e_reference(w); the error itself where there is no reference."""
    gap_l: Tensor
    weight_w: Tensor
    """w(t) of the winner, 1 by default."""
    weight_l: Tensor
    soft: Tensor
    """Probability that the winner is the better one; 1 for a hard label."""

    def logit(self, beta: float) -> Tensor:
        """Canonical logit z = -(beta / 2) (w a_w - w a_l): positive when the pair is ranked rightly."""
        return -0.5 * beta * (self.weight_w * self.gap_w - self.weight_l * self.gap_l)


def pair_order(group: Tensor, role: Tensor) -> Tensor:
    """(P, 2) row indices of winner and loser of each pair, by ascending group; no host sync.

    Raises:
        ValueError: the number of rows is odd.
    """
    if len(group) % 2:
        raise ValueError(f"pairs need an even number of rows, got {len(group)}: a pair has lost one side")
    by_role = torch.argsort(role, descending=True, stable=True)
    by_group = torch.argsort(group[by_role], stable=True)
    return by_role[by_group].view(-1, 2)


def split_pairs(batch: Denoised) -> Pairs:
    """Pick winners and losers out of a batch."""
    winner, loser = pair_order(batch.group, batch.role).unbind(1)
    gap = batch.error if batch.ref_error is None else batch.error - batch.ref_error
    ones = torch.ones_like(batch.error)
    t_weight = ones if batch.t_weight is None else batch.t_weight
    hard = torch.where(batch.role == 0, 0.5 * ones, ones)
    soft = hard if batch.soft is None else batch.soft
    return Pairs(
        error_w=batch.error[winner],
        error_l=batch.error[loser],
        gap_w=gap[winner],
        gap_l=gap[loser],
        weight_w=t_weight[winner],
        weight_l=t_weight[loser],
        soft=soft[winner],
    )


def pair_metrics(pairs: Pairs, z: Tensor) -> Metrics:
    """(P,) metrics of spec 0.4: accuracy with half ties, both gaps, margin, gradient factor sigma(-z)."""
    z = z.detach()
    return {
        "accuracy": (z > 0).to(z.dtype) + 0.5 * (z == 0).to(z.dtype),
        "win_gap": pairs.gap_w.detach(),
        "lose_gap": pairs.gap_l.detach(),
        "margin": z,
        "gradient_factor": torch.sigmoid(-z),
        "error_win": pairs.error_w.detach(),
        "error_lose": pairs.error_l.detach(),
    }


def pair_units(batch: Denoised, values: Tensor) -> Tensor:
    """(P,) mean of (N,) row values over the two sides of each pair."""
    return values[pair_order(batch.group, batch.role)].mean(1)
