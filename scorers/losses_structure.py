"""Losses of scorers with structure: intransitive embeddings, score distributions, noisy latents."""

from __future__ import annotations

import torch
from torch import Tensor

from scorers.losses import pickscore_loss


def gpm_score(a: Tensor, b: Tensor, gate: Tensor | None = None) -> Tensor:
    r"""Antisymmetric preference of a over b (general preference model, arXiv:2410.02197, eq. 5).

    :math:`\sum_l \lambda_l (a_{2l} b_{2l+1} - a_{2l+1} b_{2l})`.

    Args:
        a: (..., 2k) embeddings.
        b: (..., 2k) embeddings; leading dimensions broadcast.
        gate: (..., k) weights of the k planes; None weighs each by 1.
    """
    planes = a[..., 0::2] * b[..., 1::2] - a[..., 1::2] * b[..., 0::2]  # (..., k)
    return (planes if gate is None else gate * planes).sum(-1)


def emd(dist: Tensor, target: Tensor, *, r: float = 2.0) -> Tensor:
    r"""(B,) earth mover's distance of NIMA's score distributions (arXiv:1709.05424, eq. 1).

    :math:`(\frac1N \sum_k |\mathrm{CDF}_p(k) - \mathrm{CDF}_q(k)|^r)^{1/r}`. Zero has a zero gradient.

    Args:
        dist: (B, N) predicted probabilities of the N scores.
        target: (B, N) observed probabilities.
        r: 2 for training, 1 for the distance itself.
    """
    gap = (dist.cumsum(-1) - target.cumsum(-1)).abs()  # (B, N)
    mean = gap.pow(r).mean(-1)
    zero = mean == 0  # the root's slope is infinite there
    return torch.where(zero, torch.zeros_like(mean), torch.where(zero, 1.0, mean).pow(1 / r))


def lrm_loss(
    text: Tensor,
    latent_0: Tensor,
    latent_1: Tensor,
    timesteps: Tensor,
    *,
    scale: Tensor | float,
    label_0: Tensor,
    num_examples: Tensor | None = None,
    aux_weight: float = 1.0,
    pair_weight: float = 1.0,
    batch_weight: float = 0.0,
) -> Tensor:
    """Loss of the latent reward model (LPO, arXiv:2502.01051): PickScore's, on features of noisy latents.

    Pairs whose latents are at different timesteps count ``aux_weight``. The weights of the prompts add up to
    1 over the batch before that, so a batch with many such pairs has a smaller loss, as published.

    Args:
        text: (B, D) unit features of the prompts.
        latent_0: (B, D) unit features of the first latents.
        latent_1: (B, D) unit features of the second latents.
        timesteps: (B, 2) timestep of each side.
        scale: exp(logit_scale).
        label_0: (B,) probability in [0, 1] that the first is preferred; 0.5 is a tie.
        num_examples: (B,) how many pairs of the data set share the prompt; None counts 1 each.
        aux_weight: in [0, 1]; 0 leaves pairs at different timesteps out.
        pair_weight: weight of the comparison within pairs (published "pair": 1, and 0 for "batch").
        batch_weight: weight of the contrast with the whole batch ("batch": 1; "both": next to a pair's 1).
    """
    same = timesteps[:, 0] == timesteps[:, 1]
    count = torch.ones_like(text[:, 0]) if num_examples is None else num_examples.to(text.dtype)
    weight_sum = (1 / count).sum()
    if aux_weight == 0:
        count = count.masked_fill(~same, torch.inf)  # a weight of 1 / inf = 0
    else:
        count = torch.where(same, count, count / aux_weight)
    parts = [
        weight
        * pickscore_loss(
            text,
            latent_0,
            latent_1,
            scale=scale,
            label_0=label_0,
            num_examples=count,
            in_batch_negatives=negatives,
            weight_sum=weight_sum,
        )
        for weight, negatives in ((pair_weight, False), (batch_weight, True))
    ]
    return parts[0] + parts[1]
