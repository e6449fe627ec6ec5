"""An encoder of votes learns to foretell votes before a denoiser learns from it: seconds instead of hours.

Through the loss of a denoiser an encoder learns slowly, for the errors of noisy latents say little of a vote.
A reward that is linear in the features, with weights that are a linear map of the tokens, says all of it (the
reward model that VPL learns before it aligns anything, arXiv:2408.10075). Only the encoder is kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffalign.diffusion.corrupt import draw_seed
from diffalign.personalize.encoders import About, UserEncoder
from diffalign.personalize.encoders.about import pad_examples
from diffalign.personalize.evidence import PairFeatures
from diffalign.personalize.history import Histories

PEOPLE, QUERIES = 32, 8
"""People in a step, and votes of each that are to be foretold."""
WARMUP = 20


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
    if steps < 1:
        raise ValueError(f"steps is {steps}; at least 1 is needed to learn anything")
    device, rng = encoder.nobody.device, np.random.default_rng(draw_seed("foretell", seed))
    width = next(iter(features.values()))[0].shape[0]
    head = nn.Linear(encoder.nobody.numel(), width, bias=False)
    nn.init.normal_(head.weight, std=0.02, generator=torch.Generator().manual_seed(seed))
    head.to(device)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=learning_rate)
    losses: list[float] = []
    encoder.train()
    for step in range(steps):
        about, gaps, known = _batch(histories, features, votes, rng)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * _rate(step, steps)
        w = head(encoder(about.to(device)).flatten(1))  # (B, F)
        # features are of length 1, so that their gaps have entries of 1 / sqrt(F)
        margins = width**0.5 * (gaps.to(device) * w[:, None]).sum(-1)  # (B, Q)
        known = known.to(device)
        loss = (F.softplus(-margins) * known).sum() / known.sum()
        if not bool(loss.detach().isfinite()):
            raise FloatingPointError(
                f"foretelling votes gives a loss of {float(loss.detach())} at step {step}"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    optimizer.zero_grad(set_to_none=True)
    return float(np.mean(losses[-max(1, steps // 10) :]))


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
        raise ValueError("nobody has votes on two prompts: there is nothing to foretell; set foretell to 0")
    known = [torch.ones(len(g)) for g in gaps]
    about = About(rows=torch.full((len(supports),), -1), examples=pad_examples(supports))
    return about, nn.utils.rnn.pad_sequence(gaps, True), nn.utils.rnn.pad_sequence(known, True)


def _rate(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / WARMUP) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
