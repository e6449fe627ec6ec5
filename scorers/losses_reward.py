"""Losses of scorers that give each picture a number: ImageReward's and HPSv3's. Pure functions of scores."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from scorers.losses import pair_cross_entropy


def imagereward_loss(score_0: Tensor, score_1: Tensor, label_0: Tensor) -> Tensor:
    """Bradley-Terry cross-entropy of pairs, mean over them (ImageReward, arXiv:2304.05977, eq. 1).

    Args:
        score_0: (B,) scores of the first pictures, in logits.
        score_1: (B,) scores of the second pictures.
        label_0: (B,) probability in [0, 1] that the first is preferred; 0.5 is a tie. The published loss has
            1 everywhere: pairs are sorted by rank, equal ranks are left out (see ``ordered_pairs``).
    """
    return pair_cross_entropy(score_0 - score_1, label_0).mean()


def ordered_pairs(ranks: Sequence[float]) -> Tensor:
    """(P, 2) int64 rows (better, worse) of a ranking: all pairs with different ranks; rank 1 is the best."""
    n = range(len(ranks))
    rows = [(i, j) for i in n for j in n if ranks[i] < ranks[j]]
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 2)


def hpsv3_loss(
    out_0: Tensor,
    out_1: Tensor,
    label_0: Tensor,
    *,
    draws: int = 1000,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""HPSv3's uncertainty loss: the pair's cross-entropy, averaged over the pictures' uncertain scores.

    :math:`z \sim N(\mu_0 - \mu_1, \sigma_0^2 + \sigma_1^2)`, :math:`-E \log \mathrm{sigmoid}(z)`
    (arXiv:2508.03789), mean over pairs and draws.

    Args:
        out_0: (B, 2) mu and log sigma of the first pictures.
        out_1: (B, 2) of the second pictures.
        label_0: (B,) probability in [0, 1] that the first is preferred; published: 1 everywhere.
        draws: how many draws of z per pair.
        noise: (B, draws) standard normal numbers instead of fresh ones.
        generator: source of fresh noise, on the device of the scores.
    """
    if noise is None:
        noise = torch.randn(len(out_0), draws, generator=generator, device=out_0.device, dtype=out_0.dtype)
    mu, sigma = difference(out_0, out_1)
    z = noise.to(mu.dtype) * sigma[:, None] + mu[:, None]  # (B, draws)
    return pair_cross_entropy(z, label_0[:, None]).mean()


def hpsv3_closed_loss(out_0: Tensor, out_1: Tensor, label_0: Tensor) -> Tensor:
    r"""``hpsv3_loss`` without noise: cross-entropy of :math:`\mu / \sqrt{1 + \pi \sigma^2 / 8}`, mean.

    The probit approximation of a logistic-normal mean (MacKay, 1992). Arguments as for ``hpsv3_loss``.
    """
    mu, sigma = difference(out_0, out_1)
    return pair_cross_entropy(mu / (1 + math.pi * sigma.square() / 8).sqrt(), label_0).mean()


def difference(out_0: Tensor, out_1: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) mean and (B,) deviation of score 0 minus score 1, from (B, 2) mu and log sigma of each."""
    mu = out_0[:, 0] - out_1[:, 0]
    return mu, torch.hypot(out_0[:, 1].exp(), out_1[:, 1].exp())


def margin_loss(score_0: Tensor, score_1: Tensor, label_0: Tensor, *, margin: float = 0.57) -> Tensor:
    """Bradley-Terry loss that asks the winner to lead by ``margin`` (HPSv3's "constant margin"), mean.

    ``label_0`` (B,) is the probability that the first is preferred; at 0.5 neither side leads.
    """
    d, label = score_0 - score_1, label_0.to(score_0.dtype)
    return -(label * F.logsigmoid(d - margin) + (1 - label) * F.logsigmoid(-d - margin)).mean()


def ties_loss(score_0: Tensor, score_1: Tensor, label_0: Tensor, *, k: float = 5.0) -> Tensor:
    r"""Bradley-Terry model with ties (Rao and Kupper, 1967), HPSv3's "btt", mean over pairs.

    P(first) = sigmoid(d - ln k), P(tie) = (k^2 - 1) sigmoid(d - ln k) sigmoid(-d - ln k).

    Args:
        score_0: (B,) scores of the first pictures.
        score_1: (B,) scores of the second pictures.
        label_0: (B,) 1 first preferred, 0 second preferred, 0.5 tie; nothing between.
        k: readiness to call a tie, above 1.
    """
    d, threshold = score_0 - score_1, math.log(k)
    first, second = -F.logsigmoid(d - threshold), -F.logsigmoid(-d - threshold)
    tie = first + second - math.log(k * k - 1)
    return torch.where(label_0 == 0.5, tie, torch.where(label_0 > 0.5, first, second)).mean()


def soft_choice_loss(score_0: Tensor, score_1: Tensor, label_0: Tensor) -> Tensor:
    """HPSv3's "hpsv2" option: cross-entropy on probabilities instead of logits, *summed* over pairs.

    The softmax is applied twice, as published, so that no pair can cost less than ln(1 + 1/e).
    """
    p = torch.stack([score_0, score_1], 1).softmax(1)  # (B, 2)
    labels = torch.stack([label_0, 1 - label_0], 1).to(p.dtype)
    return -(labels * p.log_softmax(1)).sum()
