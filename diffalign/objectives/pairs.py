"""What all pair objectives share: winners and losers side by side, the canonical logit, and the metrics."""

from __future__ import annotations

from collections.abc import Callable
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
    margin: Tensor | None = None
    """Margin asked of the pair, in units of the logit; that of the winner's row."""

    def lead(self, beta: float | Tensor) -> Tensor:
        """-(beta / 2) (w a_w - w a_l): positive when the pair is ranked rightly, whatever the margin."""
        return -0.5 * beta * (self.weight_w * self.gap_w - self.weight_l * self.gap_l)

    def logit(self, beta: float | Tensor) -> Tensor:
        """Canonical logit z: the lead less the margin, i.e. P(winner is better) = sigma(lead - margin).

        With the margin another reward gives (MODPO, arXiv:2310.03708) or a score gap (ODPO,
        arXiv:2402.10571) the policy needs only explain, or must also reach, the rest.
        """
        z = self.lead(beta)
        return z if self.margin is None else z - self.margin

    def scores(self, beta: float | Tensor) -> tuple[Tensor, Tensor]:
        """beta s = -(beta / 2) w a of winner and loser, each moved by half the margin: z is their
        difference.
        """
        s_w, s_l = -0.5 * beta * self.weight_w * self.gap_w, -0.5 * beta * self.weight_l * self.gap_l
        return (s_w, s_l) if self.margin is None else (s_w - 0.5 * self.margin, s_l + 0.5 * self.margin)

    def expected(self, right: Tensor, wrong: Tensor) -> Tensor:
        """Expected loss under the soft label: of the pair as it stands, and with its sides exchanged."""
        return self.soft * right + (1 - self.soft) * wrong

    def soften(self, loss: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
        """Expected loss of a function of the logit."""
        return self.expected(loss(z), loss(-z))


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
        soft=soft[winner].to(batch.error.dtype),
        margin=None if batch.margin is None else batch.margin[winner].to(batch.error.dtype),
    )


def pair_metrics(pairs: Pairs, z: Tensor) -> Metrics:
    """(P,) metrics: accuracy with half ties, both gaps, margin, gradient factor sigma(-z).

    ``z`` is the logit; accuracy and margin are of the lead, to which the margin asked for is given back.
    """
    z = z.detach()
    lead = z if pairs.margin is None else z + pairs.margin
    return {
        "accuracy": (lead > 0).to(z.dtype) + 0.5 * (lead == 0).to(z.dtype),
        "win_gap": pairs.gap_w.detach(),
        "lose_gap": pairs.gap_l.detach(),
        "margin": lead,
        "gradient_factor": torch.sigmoid(-z),
        "error_win": pairs.error_w.detach(),
        "error_lose": pairs.error_l.detach(),
    }


def pair_units(batch: Denoised, values: Tensor) -> Tensor:
    """(P,) mean of (N,) row values over the two sides of each pair."""
    return values[pair_order(batch.group, batch.role)].mean(1)
