"""Losses that train preference scorers, on features that the towers have already computed."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as functional
from torch import Tensor


def pickscore_loss(
    text: Tensor,
    image_0: Tensor,
    image_1: Tensor,
    *,
    scale: Tensor | float,
    label_0: Tensor,
    num_examples: Tensor | None = None,
    in_batch_negatives: bool = False,
    weight_sum: Tensor | float | None = None,
) -> Tensor:
    r"""PickScore's cross-entropy between two pictures of a prompt, with soft labels and ties.

    Per pair :math:`-\sum_k l_k \log \mathrm{softmax}(s)_k`, with :math:`s_k` = scale * <text, image_k>. For a
    tie ln 2 is taken off, so that the smallest possible loss of a hard label and of a tie are both 0
    (arXiv:2305.01569).

    Args:
        text: (B, D) unit features of the prompts.
        image_0: (B, D) unit features of the first pictures.
        image_1: (B, D) unit features of the second pictures.
        scale: exp(logit_scale).
        label_0: (B,) probability in [0, 1] that the first picture is preferred; 0.5 is a tie.
        num_examples: (B,) how many pairs of the data set share the prompt; a pair weighs 1 / num_examples.
        in_batch_negatives: compare each prompt with all 2B pictures and each picture with all B prompts, and
            take the mean of both cross-entropies (the paper found no gain).
        weight_sum: sum of the weights over all processes; None takes this batch's.

    Returns:
        Weighted mean over the pairs, a scalar.
    """
    labels = torch.stack([label_0, 1 - label_0], 1).to(text.dtype)  # (B, 2)
    tie = (label_0 == 0.5).to(text.dtype) * math.log(0.5)
    if in_batch_negatives:
        pair = _in_batch(text, torch.cat([image_0, image_1]), scale, labels, tie)
    else:
        scores = scale * torch.stack([(text * image_0).sum(1), (text * image_1).sum(1)], 1)
        pair = -(labels * scores.log_softmax(1)).sum(1) + tie
    weight = torch.ones_like(pair) if num_examples is None else 1 / num_examples.to(pair.dtype)
    return (weight * pair).sum() / (weight.sum() if weight_sum is None else weight_sum)


def _in_batch(text: Tensor, images: Tensor, scale: Tensor | float, labels: Tensor, tie: Tensor) -> Tensor:
    """(B,) mean of text-to-image and image-to-text cross-entropy; ``images``: B first, then B second."""
    logits = scale * text @ images.T  # (B, 2B)
    rows = torch.arange(len(text), device=text.device)
    own = torch.stack([rows, rows + len(text)], 1)  # (B, 2) columns of a prompt's own pictures
    to_images = logits.log_softmax(1).gather(1, own)
    to_texts = logits.log_softmax(0).gather(1, own)
    return (-(labels * to_images).sum(1) + tie - (labels * to_texts).sum(1)) / 2


def contrastive_loss(text: Tensor, image: Tensor, *, scale: Tensor | float) -> Tensor:
    """CLIP's symmetric cross-entropy over B matching unit features (B, D) (arXiv:2103.00020, figure 3)."""
    logits = scale * text @ image.T
    own = torch.arange(len(text), device=text.device)
    return (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2


def pair_cross_entropy(logit: Tensor, label_0: Tensor) -> Tensor:
    r"""Bradley-Terry cross-entropy, one value per pair: :math:`-l \log\sigma(z) - (1-l) \log\sigma(-z)`.

    The loss of ImageReward (arXiv:2304.05977, equation 1) with z = s_better - s_worse and of the general
    preference model (arXiv:2410.02197, equation 9) with z = score / tau.

    Args:
        logit: (B,) log-odds that the first of two is preferred.
        label_0: (B,) probability in [0, 1] that the first is preferred.
    """
    return functional.softplus(logit) - label_0.to(logit.dtype) * logit


def choice_loss(scores: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """HPS v1's cross-entropy of the one picture that was chosen among up to K (arXiv:2303.14420), (B,).

    Args:
        scores: (B, K) log-worths of the pictures of B prompts.
        values: (B, K) what people said; the highest is the choice, the first of equals.
        mask: (B, K) True where there is a picture; None is everywhere.
    """
    if mask is not None:
        scores, values = (x.masked_fill(~mask, -torch.inf) for x in (scores, values))
    return functional.cross_entropy(scores, values.argmax(1), reduction="none")


def ranking_hinge(scores: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """``rank_hinge`` of what people said: the best has rank 0, and equals share the better rank."""
    there = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask
    better = (values[:, None, :] > values[:, :, None]) & there[:, None, :]  # (B, K, K): j before i
    return rank_hinge(scores, better.sum(2), mask)


def rank_hinge(scores: Tensor, rank: Tensor, mask: Tensor | None = None, margin: float = 1.0) -> Tensor:
    r"""(B,) hinge over all ordered pairs of a list that HPSv2's code offers: mean of :math:`(m - d_s d_r)_+`.

    d_s is the difference of two scores and d_r that of their ranks, so a pair far apart in rank is asked for
    less. The published code lets the padding of short lists take part, with score -1 and rank 10; give a mask
    to leave it out.

    Args:
        scores: (B, K) log-worths.
        rank: (B, K) ranks, 0 is best.
        mask: (B, K) True where there is a picture.
        margin: the m above.
    """
    there = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask
    used = (there[:, :, None] & there[:, None, :]).tril()  # with the diagonal, as published
    by_score = scores[:, :, None] - scores[:, None, :]  # (B, K, K)
    by_rank = (rank[:, None, :] - rank[:, :, None]).to(scores.dtype)
    hinge = (margin - by_score * by_rank).clamp_min(0) * used
    return hinge.sum((1, 2)) / used.sum((1, 2))


def listwise_loss(scores: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Plackett-Luce negative log-likelihood of each ranking; of two pictures it is Bradley-Terry's.

    Each picture is chosen among those that are not better than it; equals compete with each other
    (Breslow's approximation for ties). What is worst chooses nothing.

    Args:
        scores: (B, K) log-worths.
        values: (B, K) what people said, higher is better.
        mask: (B, K) True where there is a picture; None is everywhere.

    Returns:
        (B,) mean over the choices of each list, so that long lists weigh no more; 0 for a list of equals.
    """
    there = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask
    both = there[:, :, None] & there[:, None, :]
    rivals = both & (values[:, None, :] <= values[:, :, None])  # (B, K, K): j may be chosen where i was
    beats = (both & (values[:, None, :] < values[:, :, None])).any(2)  # (B, K)
    worth = scores[:, None, :].expand_as(rivals).masked_fill(~rivals, -torch.inf)
    worth = torch.where(beats[:, :, None], worth, 0.0)  # rows that do not count have no -inf to differentiate
    cost = torch.where(beats, worth.logsumexp(2) - scores, 0.0)
    return cost.sum(1) / beats.sum(1).clamp_min(1)


def hinge_loss(logit: Tensor, label_0: Tensor, *, margin: float = 1.0, smooth: float | None = None) -> Tensor:
    """PAL's hinge, one value per pair: (margin - y z)_+ with y = 2 label - 1 (arXiv:2406.08469, section 3).

    Args:
        logit: (B,) how much nearer the first is to the user's ideal point than the second.
        label_0: (B,) probability in [0, 1] that the first is preferred.
        margin: distance at which a comparison counts as learnt.
        smooth: up to so large a hinge u it is u^2 / (2 smooth), beyond u - smooth / 2; None is the plain one.
    """
    hinge = (margin - (2 * label_0.to(logit.dtype) - 1) * logit).clamp_min(0)
    if smooth is None:
        return hinge
    return torch.where(hinge <= smooth, hinge.square() / (2 * smooth), hinge - smooth / 2)
