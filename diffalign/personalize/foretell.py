"""An encoder of votes learns to foretell votes before a denoiser learns from it: seconds instead of hours.

Through the loss of a denoiser an encoder learns slowly, for the errors of noisy latents say little of a vote.
A reward that is linear in the features, with weights that are a linear map of the tokens, says all of it (the
reward model that VPL learns before it aligns anything, arXiv:2408.10075). A denoiser keeps the encoder alone,
a judge (``personalize.vpl``) the weights too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffalign.diffusion.corrupt import draw_seed
from diffalign.personalize.encoders import About, Encoded, UserEncoder
from diffalign.personalize.encoders.about import pad_examples
from diffalign.personalize.evidence import PairFeatures
from diffalign.personalize.history import Histories

PEOPLE, QUERIES = 32, 8
"""People in a step, and votes of each that are to be foretold."""
WARMUP = 20
NOTHING = (
    "nobody has votes on two prompts: there is nothing to foretell; bring people with more votes (a recipe "
    "without them: set foretell to 0)"
)


@dataclass(frozen=True, kw_only=True)
class Foretold:
    """What learning to foretell leaves besides the encoder."""

    head: nn.Linear
    """Of (B, K D) tokens of people: (B, F) weights of features; see ``reward``."""
    loss: float
    """Mean Bradley-Terry loss of the last tenth of the steps, in nats; log 2 is that of chance."""


def reward(features: Tensor, weights: Tensor) -> Tensor:
    """(...) log-worths of unit features (..., F) for a person's weights (..., F); gaps give log-odds."""
    # features are of length 1, so that their gaps have entries of 1 / sqrt(F)
    return (features * weights).sum(-1).mul(features.shape[-1] ** 0.5)


def foretell(
    encoder: UserEncoder,
    histories: Histories,
    features: Mapping[int, PairFeatures],
    *,
    steps: int,
    votes: int = 8,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> float:
    """Train an encoder of votes, in place, so that its tokens foretell a person's other votes.

    Args:
        encoder: reads examples and, besides them, at most table rows (which stay unknown here).
        histories: whose votes are where; people with two votes at least take part.
        features: of each pair, as ``embed_pairs`` makes them.
        steps: of AdamW, each on 32 people.
        votes: a person is described by 1 to so many votes, which share neither prompt nor image with those
            that are to be foretold.
        learning_rate: the peak of a cosine after a warm-up of 20 steps.
        seed: of people, votes, and the reward's weights.

    Returns:
        Mean Bradley-Terry loss of the last tenth of the steps, in nats; log 2 is that of chance.

    Raises:
        ValueError: nobody has a vote to foretell besides one of another prompt, or ``steps`` is below 1.
        FloatingPointError: the loss became NaN or infinite.
    """
    return learn_reward(
        encoder, histories, features, steps=steps, votes=votes, learning_rate=learning_rate, seed=seed
    ).loss


def learn_reward(
    encoder: UserEncoder,
    histories: Histories,
    features: Mapping[int, PairFeatures],
    *,
    steps: int,
    votes: int = 8,
    learning_rate: float = 2e-3,
    kl: float = 0.0,
    seed: int = 0,
) -> Foretold:
    """Train an encoder as ``foretell`` does, and keep the reward's weights.

    Args:
        encoder: see ``foretell``, as for all arguments but these.
        histories: of people.
        features: of pairs.
        steps: of AdamW.
        votes: at most so many describe a person.
        learning_rate: the peak.
        kl: weight of a variational encoder's divergence from its prior (VPL: 1e-4).
        seed: of what is drawn here; a variational encoder draws from torch's generator besides.

    Raises:
        ValueError: see ``foretell``; or ``kl`` for an encoder that is not variational.
        FloatingPointError: the loss became NaN or infinite.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; at least 1 is needed to learn anything")
    if not features:
        raise ValueError(NOTHING)
    device, rng = encoder.nobody.device, np.random.default_rng(draw_seed("foretell", seed))
    head = _head(encoder, next(iter(features.values()))[0].shape[0], seed)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=learning_rate)
    losses: list[float] = []
    encoder.train()
    for step in range(steps):
        about, gaps, known = _batch(histories, features, votes, rng)
        known = known.to(device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * _rate(step, steps)
        found = encoder.encoded(about.to(device))
        w = head(found.tokens.flatten(1))  # (B, F)
        loss = (F.softplus(-reward(gaps.to(device), w[:, None])) * known).sum() / known.sum()
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(f"foretelling votes gives a loss of {losses[-1]} at step {step}")
        if kl:
            loss = loss + kl * _divergence(found)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return Foretold(head=head, loss=float(np.mean(losses[-max(1, steps // 10) :])))


def _head(encoder: UserEncoder, width: int, seed: int) -> nn.Linear:
    """Weights of features (F,) from tokens, near zero, on the encoder's device."""
    head = nn.Linear(encoder.nobody.numel(), width, bias=False)
    nn.init.normal_(head.weight, std=0.02, generator=torch.Generator().manual_seed(seed))
    return head.to(encoder.nobody.device)


def _divergence(found: Encoded) -> Tensor:
    if found.kl is None:
        raise ValueError("kl is for variational encoders: set variational in the encoder, or kl to 0")
    return found.kl.mean()


def _batch(
    histories: Histories, features: Mapping[int, PairFeatures], votes: int, rng: np.random.Generator
) -> tuple[About, Tensor, Tensor]:
    """About of B people, (B, Q, F) winners less losers of their other votes, (B, Q) 1 where there is one."""
    people, most = histories.people, int(rng.integers(1, votes + 1))
    supports, gaps = [], []
    for _ in range(100 * PEOPLE):
        own = histories.of[people[int(rng.integers(len(people)))]]
        query = [own[i] for i in rng.permutation(len(own))[: min(QUERIES, max(1, len(own) // 2))]]
        support = histories.support(histories.raters[query[0]] or "", most, rng, query)
        if support:
            supports.append([features[p] for p in support])
            gaps.append(torch.stack([features[p][1] - features[p][2] for p in query]))
        if len(supports) == PEOPLE:
            break
    if not supports:
        raise ValueError(NOTHING)
    known = [torch.ones(len(g)) for g in gaps]
    about = About(rows=torch.full((len(supports),), -1), examples=pad_examples(supports))
    return about, nn.utils.rnn.pad_sequence(gaps, True), nn.utils.rnn.pad_sequence(known, True)


def _rate(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / WARMUP) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
