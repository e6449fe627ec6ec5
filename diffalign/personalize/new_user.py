"""Somebody new: tokens from a few votes, by an encoder in no steps or by a fit in seconds."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from diffalign.personalize.encoders import About, Examples, UserEncoder


@torch.no_grad()
def encode(encoder: UserEncoder, examples: Examples) -> Tensor:
    """(B, K, D) tokens of B new people from their votes: no training at all.

    Raises:
        ValueError: the encoder reads no votes, or features of another width; or somebody has no votes.
    """
    if "examples" not in encoder.options.needs:
        raise ValueError(
            f"this encoder reads {', '.join(sorted(encoder.options.needs))} and no votes: fit weights or "
            "tokens instead (fit_weights, fit_tokens)"
        )
    if not bool(examples.mask.any(1).all()):
        raise ValueError(
            "somebody has no votes, so there is nothing to encode; ask first (diffalign users ask)"
        )
    unknown = torch.full((len(examples.mask),), -1, device=examples.mask.device)
    training = encoder.training
    tokens: Tensor = encoder.eval()(About(rows=unknown, examples=examples))
    encoder.train(training)
    return tokens


def fit_weights(margins: Tensor, labels: Tensor, *, prior: float = 1.0) -> Tensor:
    """(P,) row of a new person over P prototypes, or over P known people, from k votes.

    The largest posterior under Bradley-Terry votes, P(first wins) = sigma(softmax(row) . margin), and the
    prior N(0, 1 / prior) on the row (PAL, arXiv:2406.08469, section 3.3: nothing else is trained).

    Args:
        margins: (k, P) reward of the first picture less that of the second, by each prototype's own reward.
        labels: (k,) probability that the first picture is preferred, in [0, 1].
        prior: strength of the prior, 0 or more.

    Returns:
        float64 row; ``row.softmax(0)`` are weights, of sum 1.

    Raises:
        ValueError: no votes, shapes that do not fit, labels outside [0, 1], or a negative prior.
    """
    if margins.ndim != 2 or labels.shape != margins.shape[:1] or not len(labels):
        raise ValueError(
            f"votes have margins {tuple(margins.shape)} and labels {tuple(labels.shape)}; they must be "
            "(votes, prototypes) and (votes,), with at least one vote"
        )
    if bool(((labels < 0) | (labels > 1)).any()) or not prior >= 0:
        raise ValueError(f"labels must lie in [0, 1] and prior be at least 0; prior is {prior}")
    m, y = margins.detach().double(), labels.detach().double()
    row = torch.zeros(m.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([row], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        z = m @ row.softmax(0)
        loss = F.binary_cross_entropy_with_logits(z, y, reduction="sum") + prior / 2 * row.square().sum()
        row.grad = torch.autograd.grad(loss, row)[0]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return row.detach()


def fit_tokens(
    loss: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    steps: int = 100,
    learning_rate: float = 1e-2,
    pull: float = 0.0,
) -> Tensor:
    """(K, D) tokens of a new person by gradient descent on a loss of tokens; everything else stands still.

    The loss is that of the person's votes: under a user-conditioned reward (seconds on a CPU), or DPO's of
    the denoiser itself with the tokens as its condition.

    Args:
        loss: scalar loss of (K, D) tokens, differentiable.
        start: (K, D) tokens to begin with: the mean of known people, or those of ``fit_weights``.
        steps: steps of Adam.
        learning_rate: of Adam.
        pull: weight of |tokens - start|^2, averaged over entries, 0 or more.

    Raises:
        ValueError: an option out of range.
        FloatingPointError: the loss became NaN or infinite.
    """
    if steps < 1 or not learning_rate > 0 or not pull >= 0:
        raise ValueError(
            f"steps is {steps}, learning_rate {learning_rate}, pull {pull}; they must be at least 1, above "
            "0, and at least 0"
        )
    begin = start.detach()
    tokens = begin.clone().requires_grad_()
    optimizer = torch.optim.Adam([tokens], lr=learning_rate)
    with torch.enable_grad():
        for step in range(steps):
            value = loss(tokens) + pull * (tokens - begin).square().mean()
            if not bool(value.isfinite()):
                raise FloatingPointError(
                    f"the loss of the votes is {float(value.detach())} at step {step}: lower learning_rate "
                    f"({learning_rate})"
                )
            tokens.grad = torch.autograd.grad(value, tokens)[0]
            optimizer.step()
    return tokens.detach()


def nearest_mean(tokens: Tensor, weights: Tensor, count: int) -> Tensor:
    """(K, D) mean of the tokens of the ``count`` known people of largest weight: a baseline without training.

    Args:
        tokens: (U, K, D) tokens of known people.
        weights: (U,) how well each explains the new person's votes, for example ``fit_weights(...)``.
        count: how many, 1 to U.

    Raises:
        ValueError: ``count`` out of range.
    """
    if not 1 <= count <= len(tokens):
        raise ValueError(f"count is {count}; it must be from 1 to {len(tokens)} known people")
    return tokens[weights.topk(count).indices].mean(0)
