"""Losses of DiNa-LRM: how sure a comparison may be of noisy latents."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from scorers.losses import pair_cross_entropy

DinaLoss = Literal["bt", "bt-margin", "thurstone", "thurstone-constant"]
DINA_LOSSES: tuple[DinaLoss, ...] = get_args(DinaLoss)
EPS = 1e-6


def thurstone_prob(gap: Tensor, variance: Tensor | float) -> Tensor:
    r"""(B,) chance :math:`\Phi(\Delta / \sqrt{2 v + 10^{-6}})` that the first wins (Thurstone's case V).

    Args:
        gap: (B,) score of the first minus that of the second.
        variance: (B,) or one number, the variance of a single score.
    """
    spread = (2 * torch.as_tensor(variance, dtype=gap.dtype, device=gap.device) + EPS).sqrt()
    prob: Tensor = torch.special.ndtr(gap / spread)
    return prob


def score_variance(sigma: Tensor) -> Tensor:
    """(B,) variance 2 sigma^2 + 0.05 of a score at noise sigma (B,): noisy latents may be judged wrongly."""
    return 2 * sigma.square() + 0.05


def fidelity_loss(prob: Tensor, label_0: Tensor) -> Tensor:
    r"""(B,) fidelity :math:`1 - \sqrt{l (P + \epsilon)} - \sqrt{(1 - l)(1 - P + \epsilon)}`.

    Unlike the logarithm it stays bounded by 1, so a label that is wrong pulls less. The least value is 0 for
    soft labels too.

    Args:
        prob: (B,) predicted chance P that the first is preferred.
        label_0: (B,) observed chance l.
    """
    label = label_0.to(prob.dtype)
    won, lost = (prob + EPS).sqrt(), (1 - prob + EPS).sqrt()
    return 1 - label.sqrt() * won - (1 - label).sqrt() * lost


def dina_loss(gap: Tensor, sigma: Tensor, label_0: Tensor, kind: DinaLoss = "thurstone") -> Tensor:
    """(B,) loss of DiNa-LRM for pairs of equally noisy latents; a tie counts as half a win of either side.

    Args:
        gap: (B,) score of the first minus that of the second.
        sigma: (B,) noise factor of the latents, in [0, 1].
        label_0: (B,) chance in [0, 1] that the first is preferred.
        kind: ``thurstone`` is the published one, with ``score_variance``; ``thurstone-constant`` has the
            variance 1/2 at every level; ``bt`` is Bradley-Terry's cross-entropy; ``bt-margin`` asks the
            winner for a lead of 1.

    Raises:
        ValueError: unknown kind.
    """
    if kind not in DINA_LOSSES:
        raise ValueError(f"no DiNa loss {kind!r}; there are {', '.join(DINA_LOSSES)}")
    if kind == "bt":
        return pair_cross_entropy(gap, label_0)
    if kind == "bt-margin":
        label = label_0.to(gap.dtype)
        return label * F.softplus(1 - gap) + (1 - label) * F.softplus(1 + gap)
    variance = score_variance(sigma) if kind == "thurstone" else 0.5
    return fidelity_loss(thurstone_prob(gap, variance), label_0)
