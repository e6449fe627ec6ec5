"""Preferences made in the shapes world: pictures of the base model, voted on by a simulated person."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

import numpy as np
from torch import Tensor

from diffalign.data.records import BytesImage, Record
from diffalign.evaluate.generate import Progress, Sampling, generate_base
from diffalign.policy import Policy
from diffalign.train.config import WorldConfig
from diffalign.world.grammar import Prompt, Split, double_prompts, single_prompts
from diffalign.world.raters import Rater, leaves_open, named_rater

logger = logging.getLogger(__name__)

SELECTION = 32
"""Training prompts that are never voted on."""


def world_prompts(taste: str, n: int, split: Split, seed: int = 0) -> list[Prompt]:
    """Up to n different prompts, in random order, that leave something of the taste open.

    On the others, votes would be mere noise and every comparison a tie. Two-object prompts fill up where
    fewer than 100 one-object prompts do.
    """
    weights = named_rater(taste).weights
    pool = [p for p in single_prompts(split) if leaves_open(p, weights)]
    pool += [p for p in double_prompts(split) if leaves_open(p, weights)][:200] if len(pool) < 100 else []
    order = np.random.default_rng([seed, 5]).permutation(len(pool))[:n]
    return [pool[i] for i in order]


def training_prompts(config: WorldConfig) -> tuple[list[Prompt], list[Prompt]]:
    """Training prompts that are voted on, and those kept apart to select checkpoints on.

    Of the few prompts that leave some tastes open, SELECTION at least are kept, and fewer are voted on.
    """
    asked = max(1, config.images // config.per_prompt)
    every = world_prompts(config.taste, max(1000, asked + SELECTION), "train", config.seed)
    voted = min(asked, max(1, len(every) - SELECTION))
    return every[:voted], every[voted:]


def world_records(
    policy: Policy, config: WorldConfig, cache: Path, progress: Progress = lambda n: None
) -> list[Record]:
    """Pictures of the base on training prompts (made once and kept in ``cache``), and noisy votes on their
    pairs.
    """
    rater = named_rater(config.taste, config.temperature, config.careless)
    prompts, _ = training_prompts(config)
    made = len(prompts) * config.per_prompt
    if made <= config.images - config.per_prompt:
        logger.warning(
            "data.world.images is %d, but only %d pictures are made: the world has %d training prompts "
            "for the taste %r besides the %d that select; raise data.world.per_prompt for more",
            config.images, made, len(prompts), config.taste, SELECTION,
        )  # fmt: skip
    seeds = range(1000, 1000 + config.per_prompt)  # never those of the evaluation
    pictures = generate_base(policy, [str(p) for p in prompts], list(seeds), Sampling(), cache, progress)
    return vote_records(prompts, pictures, rater, np.random.default_rng([config.seed, 6]))


def vote_records(
    prompts: list[Prompt], pictures: Tensor, rater: Rater, rng: np.random.Generator
) -> list[Record]:
    """One pair record for every two pictures of the same prompt; ``pictures`` is (P, S, 3, 64, 64) uint8."""
    flat, each = pictures.flatten(0, 1), pictures.shape[1]
    utility = rater.score(flat.float() / 255, [p for p in prompts for _ in range(each)]).unflatten(
        0, (-1, each)
    )
    images = [BytesImage.from_array(x.permute(1, 2, 0).numpy()) for x in flat]
    records = []
    for a, b in itertools.combinations(range(each), 2):
        votes = rater.vote(utility[:, a], utility[:, b], rng)
        for i, (prompt, vote) in enumerate(zip(prompts, votes.tolist(), strict=True)):
            pair = (images[i * each + a], images[i * each + b])
            records.append(
                Record(
                    prompt=str(prompt), images=pair, kind="pair", values=(vote, 1 - vote), rater=rater.name
                )
            )
    return records
