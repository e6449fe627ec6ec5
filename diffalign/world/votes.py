"""Preferences made in the shapes world: pictures of the base model, voted on by a simulated person."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffalign.data.records import BytesImage, Kind, Record
from diffalign.evaluate.generate import Progress, Sampling, generate_base
from diffalign.label.captions import dual_captions
from diffalign.label.judges import load_judges
from diffalign.label.options import LabelOptions
from diffalign.label.pool import of_pictures
from diffalign.label.write import derive
from diffalign.policy import Policy
from diffalign.train.blocks import WorldConfig
from diffalign.world.captions import describe_images, perturb
from diffalign.world.grammar import Prompt, Split, double_prompts, single_prompts
from diffalign.world.population import population_prompts, votes_of
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
    if config.population is not None:
        return population_prompts("train"), []
    asked = max(1, config.images // config.per_prompt)
    every = world_prompts(config.taste, max(1000, asked + SELECTION), "train", config.seed)
    voted = min(asked, max(1, len(every) - SELECTION))
    return every[:voted], every[voted:]


def world_records(
    policy: Policy,
    config: WorldConfig,
    cache: Path,
    progress: Progress = lambda n: None,
    sampling: Sampling | None = None,
) -> list[Record]:
    """Pictures of the base on training prompts (made once and kept in ``cache``), and what a simulated person
    says of them: noisy votes on their pairs, likes and dislikes, or rankings, as ``config.ask`` says; with
    scorers' labels, pairs by a rule, or own captions where the config asks for them.

    The pictures are drawn as ``sampling`` says, by default as evaluations draw theirs.

    Raises:
        RegistryError: no such rule or scorer.
        DataError: the rule makes no pair of these pictures.
    """
    if config.population is not None:
        return crowd_records(policy, config, config.population.seen, cache, progress, sampling)
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
    sampling = sampling or Sampling()
    pictures = generate_base(policy, [str(p) for p in prompts], list(seeds), sampling, cache, progress)
    records = _asked(prompts, pictures, config, rater)
    if config.scorers:
        records = scored_records(records, prompts, pictures, config, cache, policy.device)
    if config.captions != "prompt":
        records = dual_captions(
            records, config.captions, describe=describe_images, perturb=perturb, seed=config.seed
        )
    return turned(records, config.flip, np.random.default_rng([config.seed, 7]))


def crowd_records(
    policy: Policy,
    config: WorldConfig,
    names: Sequence[str],
    cache: Path,
    progress: Progress = lambda n: None,
    sampling: Sampling | None = None,
) -> list[Record]:
    """Votes of people of ``config.population``: of those who are trained on, or of those who are held out.

    ``config.per_prompt`` pictures of every prompt are made, whatever ``config.images`` says; those who are
    held out see pictures that the others never do.

    Raises:
        ValueError: the config has no population, or somebody can hardly decide anything.
    """
    people = config.population
    if people is None:
        raise ValueError("data.world.population is missing: say who votes")
    prompts, seeds = population_prompts("train"), list(range(1000, 1000 + config.per_prompt))
    texts = [str(p) for p in prompts]
    pictures = generate_base(policy, texts, seeds, sampling or Sampling(), cache, progress)
    cut, raters = config.per_prompt - people.apart, people.raters()
    parts = []
    for number, (group, shown) in enumerate(
        ((people.seen, pictures[:, :cut]), (people.unseen, pictures[:, cut:]))
    ):
        some = {name: raters[name] for name in group if name in set(names)}
        parts += (
            votes_of(some, prompts, shown, people.votes, [config.seed, people.seed, number]) if some else []
        )
    return parts


def _asked(prompts: list[Prompt], pictures: Tensor, config: WorldConfig, rater: Rater) -> list[Record]:
    """What the person says when asked as ``config.ask`` says."""
    rng = np.random.default_rng([config.seed, 6])
    if config.ask == "likes":
        return like_records(prompts, pictures, rater, rng)
    if config.ask == "rankings":
        return ranking_records(prompts, pictures, rater, rng, config.list_length)
    return vote_records(prompts, pictures, rater, rng)


def scored_records(
    records: list[Record],
    prompts: list[Prompt],
    pictures: Tensor,
    config: WorldConfig,
    cache: Path,
    device: str | torch.device = "cpu",
) -> list[Record]:
    """Records with the labels of ``config.scorers``, or instead of them the pairs of ``config.rule``.

    A rule sees all pictures of a prompt; ``relabel`` sees the pairs that were voted on.
    """
    judges, options = load_judges(config.scorers, device), LabelOptions(cache=str(cache))
    if config.rule not in (None, "relabel"):
        records = of_pictures([str(p) for p in prompts], pictures)
    items, _ = derive(records, judges, options, rule=config.rule)
    return [item.record for item in items]


def turned(records: list[Record], share: float, rng: np.random.Generator) -> list[Record]:
    """Votes and likes of which a share, drawn by ``rng``, is turned round; ties stay as they are."""
    drawn = rng.random(len(records)) < share
    return [
        replace(r, values=tuple(1 - v for v in r.values)) if turn and not r.undecided else r
        for r, turn in zip(records, drawn.tolist(), strict=True)
    ]


def vote_records(
    prompts: list[Prompt], pictures: Tensor, rater: Rater, rng: np.random.Generator
) -> list[Record]:
    """One pair record for every two pictures of the same prompt; ``pictures`` is (P, S, 3, 64, 64) uint8."""
    utility, images = _judged(prompts, pictures, rater)
    records = []
    for a, b in itertools.combinations(range(pictures.shape[1]), 2):
        votes = rater.vote(utility[:, a], utility[:, b], rng)
        for row, prompt, vote in zip(images, prompts, votes.tolist(), strict=True):
            records.append(_record(prompt, (row[a], row[b]), "pair", (vote, 1 - vote), rater))
    return records


def like_records(
    prompts: list[Prompt], pictures: Tensor, rater: Rater, rng: np.random.Generator
) -> list[Record]:
    """One like or dislike for each of (P, S, 3, 64, 64) uint8 pictures, seen alone.

    Liked is what beats, in a noisy vote, the median of all pictures: what the person thinks usual.
    """
    utility, images = _judged(prompts, pictures, rater)
    usual = utility.median().expand(len(prompts))
    records = []
    for side in range(pictures.shape[1]):
        votes = rater.vote(utility[:, side], usual, rng)
        for row, prompt, vote in zip(images, prompts, votes.tolist(), strict=True):
            records.append(_record(prompt, (row[side],), "labels", (vote,), rater))
    return records


def ranking_records(
    prompts: list[Prompt], pictures: Tensor, rater: Rater, rng: np.random.Generator, length: int = 4
) -> list[Record]:
    """Lists of ``length`` pictures of (P, S, 3, 64, 64) uint8 ones, ranked by the Plackett-Luce model.

    The value of a picture is the share of the others in its list that it is placed above.
    """
    utility, images = _judged(prompts, pictures, rater)
    noisy = utility.double().numpy() + rater.temperature * rng.gumbel(size=utility.shape)  # (P, S)
    records = []
    for start in range(0, pictures.shape[1] - length + 1, length):
        place = noisy[:, start : start + length].argsort(1).argsort(1) / (length - 1)  # (P, length)
        for row, prompt, values in zip(images, prompts, place.tolist(), strict=True):
            records.append(_record(prompt, row[start : start + length], "ranking", tuple(values), rater))
    return records


def _record(
    prompt: Prompt, images: Sequence[BytesImage], kind: Kind, values: tuple[float, ...], rater: Rater
) -> Record:
    return Record(prompt=str(prompt), images=tuple(images), kind=kind, values=values, rater=rater.name)


def _judged(
    prompts: list[Prompt], pictures: Tensor, rater: Rater
) -> tuple[Tensor, list[tuple[BytesImage, ...]]]:
    """(P, S) noise-free utilities of (P, S, 3, 64, 64) uint8 pictures, and the pictures by prompt."""
    flat, each = pictures.flatten(0, 1), pictures.shape[1]
    utility = rater.score(flat.float() / 255, [p for p in prompts for _ in range(each)])
    images = [tuple(BytesImage.from_array(x.permute(1, 2, 0).numpy()) for x in row) for row in pictures]
    return utility.unflatten(0, (-1, each)), images
