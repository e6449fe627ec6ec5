"""Losses that train preference scorers, on features that the towers have already computed."""

from __future__ import annotations

import math

import torch
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
    weight_sum: Tensor | None = None,
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
    cross_entropy = torch.nn.functional.cross_entropy
    return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2
