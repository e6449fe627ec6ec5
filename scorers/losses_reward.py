"""Losses of comparisons that HPSv3's code and the general preference model offer. Pure functions.

All take log-odds z (B,) that the first of two is preferred and the probability label (B,) that it is, and
give (B,) values: ``hpsv3_loss`` alone sees mean and deviation of both sides.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from scorers.losses import pair_cross_entropy


def hpsv3_loss(
    out_0: Tensor,
    out_1: Tensor,
    label_0: Tensor,
    *,
    draws: int = 1000,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""HPSv3's uncertainty loss: the pair's cross-entropy, averaged over uncertain scores: (B,).

    :math:`z \sim N(\mu_0 - \mu_1, \sigma_0^2 + \sigma_1^2)`, :math:`-E \log \mathrm{sigmoid}(z)`
    (arXiv:2508.03789), mean over draws.

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
    mu, sigma = out_0[:, 0] - out_1[:, 0], torch.hypot(out_0[:, 1].exp(), out_1[:, 1].exp())
    z = noise.to(mu.dtype) * sigma[:, None] + mu[:, None]  # (B, draws)
    return pair_cross_entropy(z, label_0[:, None]).mean(1)


def margin_loss(logit: Tensor, label_0: Tensor, *, margin: float = 0.57) -> Tensor:
    """Bradley-Terry loss that asks the winner to lead by ``margin`` (HPSv3's "constant margin"), (B,).

    At a label of 0.5 neither side leads.
    """
    label = label_0.to(logit.dtype)
    return -(label * F.logsigmoid(logit - margin) + (1 - label) * F.logsigmoid(-logit - margin))


def ties_loss(logit: Tensor, label_0: Tensor, *, k: float = 5.0) -> Tensor:
    r"""Bradley-Terry model with ties (Rao and Kupper, 1967), HPSv3's "btt", (B,).

    P(first) = sigmoid(z - ln k), P(tie) = (k^2 - 1) sigmoid(z - ln k) sigmoid(-z - ln k).

    Args:
        logit: (B,) log-odds z.
        label_0: (B,) 1 first preferred, 0 second preferred, 0.5 tie; nothing between.
        k: readiness to call a tie, above 1.
    """
    threshold = math.log(k)
    first, second = -F.logsigmoid(logit - threshold), -F.logsigmoid(-logit - threshold)
    tie = first + second - math.log(k * k - 1)
    return torch.where(label_0 == 0.5, tie, torch.where(label_0 > 0.5, first, second))


def soft_choice_loss(logit: Tensor, label_0: Tensor) -> Tensor:
    """HPSv3's "hpsv2" option: cross-entropy on probabilities instead of logits, (B,).

    The softmax is applied twice, as published, so that no pair can cost less than ln(1 + 1/e).
    """
    p = torch.stack([logit, torch.zeros_like(logit)], 1).softmax(1)  # (B, 2)
    labels = torch.stack([label_0, 1 - label_0], 1).to(p.dtype)
    return -(labels * p.log_softmax(1)).sum(1)


def regression_loss(logit: Tensor, label_0: Tensor, *, target: float = 10.0) -> Tensor:
    """Half the squared distance of z to a target, (B,), as the general preference model's code offers it.

    ``target`` is the log-odds of a certain vote; a tie's is 0.
    """
    return 0.5 * (logit - target * (2 * label_0.to(logit.dtype) - 1)).square()
