"""Study: how many votes each way of choosing needs until what is learnt from them wins 70 % of comparisons.

In the shapes world, a simulated person with a taste of their own votes on pairs of the base model's pictures.
After every few votes a reward is fitted to them (logistic, on measures of pictures) and picks the best of a
held-out prompt's pictures; the person's noise-free taste compares that with the prompt's first picture. So a
vote is worth what it adds to the reward, and nothing is trained but the reward: the study ranks ways of
choosing, and says nothing of how fast a diffusion model follows.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffalign.evaluate.generate import Sampling, generate_base
from diffalign.evaluate.stats import Interval, base_sd, bootstrap
from diffalign.policy import load_policy
from diffalign.train.blocks import WorldConfig
from diffalign.votes.choose import CHOOSERS, Choice, Pool, chooser
from diffalign.votes.explain import newton
from diffalign.world.grammar import Prompt
from diffalign.world.oracle import Measurements, measure, obeys
from diffalign.world.raters import AXES, Population, Rater
from diffalign.world.votes import training_prompts, world_prompts

Floats = NDArray[np.float64]
TARGET = 0.70
COMMITTEE = 5
"""Rewards fitted to resampled votes: the scorers that disagreement and entropy ask."""
RIDGE = 1.0


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """Size of the study."""

    people: int = 40
    """Simulated people, each of whom votes once for every way of choosing."""
    noise: float = 1.0
    """Noise of their votes (Bradley-Terry), in s.d. of an axis; the demo's votes have 0.4."""
    batch: int = 2
    """Votes between two fits."""
    most: int = 120
    """Votes of a person at most."""
    held_out: int = 100
    """Held-out prompts."""
    model: str = "samples/shapes/unet"
    seed: int = 3


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Pictures of P prompts with S seeds."""

    prompts: Sequence[Prompt]
    pictures: Tensor
    """(P, S, 3, 64, 64) uint8."""
    features: Floats
    """(P, S, F)"""
    found: Measurements
    """What the oracle sees in the P * S pictures."""

    def utility(self, rater: Rater) -> Floats:
        """(P, S) noise-free utilities."""
        p, s = self.pictures.shape[:2]
        each = [prompt for prompt in self.prompts for _ in range(s)]
        utility: Floats = rater.utility(self.found, each).double().numpy().reshape(p, s)
        return utility


@dataclass(frozen=True, kw_only=True)
class Needed:
    """What one way of choosing needed."""

    way: str
    votes: Interval
    """Mean over people of the votes until the win rate reached the target; those who never did count as the
    most that were given.
    """
    less: Interval
    """Mean over people of the votes less than at random, paired by person."""
    never: int
    """People whose win rate did not reach it."""
    curve: Floats
    """Mean win rate over people after each batch."""


ABOUT = """# Choosing what to vote on

Written by `training/choose_study.py`.

{people} simulated people with tastes of their own vote, with a noise of {noise:g} s.d., on pairs of the base
model's pictures. After every {batch} votes a logistic reward is fitted on what the oracle measures of the
pictures, and picks the best of the 4 pictures of each of {prompts} held-out prompts; the person's noise-free
taste compares it with the first picture (a gain within 0.25 s.d. is a tie). The reward alone is trained, and
on measures that span the tastes: this ranks ways of choosing, and says nothing of how many votes a diffusion
model needs. Perfect picks would win {best:.3f}.

A person's count is the first at which two fits running win 0.70; who never gets there counts as {most}.
Intervals resample people; the difference is paired by person. `margin` asks the learnt reward's margin,
`disagreement`, `entropy` and `routed` a committee of {committee} rewards fitted to resampled votes; what
`routed` leaves to the committee (0.9 sure) is trained on, and is no vote.
"""


def scenes(options: StudyOptions, cache: Path) -> tuple[Scene, Scene]:
    """Pictures that are voted on and held-out ones, as runs on the taste ``large`` draw them.

    They are kept in ``cache``, where such runs find them.
    """
    policy = load_policy(options.model)
    policy.keep_base()
    config = WorldConfig(taste="large", images=600, per_prompt=8)
    voted, _ = training_prompts(config)
    held = world_prompts(config.taste, options.held_out, "heldout")
    train = _scene(lambda p, s: generate_base(policy, p, s, Sampling(), cache), voted, range(1000, 1008))
    test = _scene(lambda p, s: generate_base(policy, p, s, Sampling(), cache), held, range(4))
    centre = train.features.reshape(-1, train.features.shape[-1]).mean(0)
    scale = train.features.reshape(-1, len(centre)).std(0) + 1e-9
    train, test = (replace(s, features=(s.features - centre) / scale) for s in (train, test))
    return train, test


def _scene(
    draw: Callable[[Sequence[str], Sequence[int]], Tensor], prompts: Sequence[Prompt], seeds: Sequence[int]
) -> Scene:
    pictures = draw([str(p) for p in prompts], list(seeds))
    found = measure(pictures.flatten(0, 1).float() / 255)
    features = picture_features(prompts, pictures, found)
    return Scene(prompts=prompts, pictures=pictures, features=features, found=found)


def picture_features(prompts: Sequence[Prompt], pictures: Tensor, found: Measurements) -> Floats:
    """(P, S, F) measures of (P, S, 3, 64, 64) uint8 pictures: the oracle's axes within 3 s.d., obedience, and
    mean colour; axes of unrecognisable pictures are 0.
    """
    p, s = pictures.shape[:2]
    axes = torch.stack([axis(found).clamp(-3, 3) for axis in AXES.values()], 1)
    axes = torch.where(found.recognised[:, None], axes.nan_to_num(), 0.0)
    obeyed = obeys(found, [prompt for prompt in prompts for _ in range(s)]).all.float()
    features = torch.cat([axes, obeyed[:, None], pictures.flatten(0, 1).float().mean((2, 3)) / 255], 1)
    return features.double().numpy().reshape(p, s, -1)


def _people(options: StudyOptions) -> list[Rater]:
    crowd = Population(people=options.people, careless_people=0, temperature=options.noise, seed=options.seed)
    return crowd.raters()


def study(options: StudyOptions, train: Scene, test: Scene) -> list[Needed]:
    """Votes needed by every way of choosing."""
    people = _people(options)
    curves = {
        way: np.array([learn(way, r, i, options, train, test) for i, r in enumerate(people)])
        for way in CHOOSERS
    }
    random = _counts(curves["random"], options)
    return [_needed(way, rows, random, options) for way, rows in curves.items()]


def learn(way: str, rater: Rater, number: int, options: StudyOptions, train: Scene, test: Scene) -> Floats:
    """Win rate on held-out prompts after each batch of one person's votes."""
    rng = np.random.default_rng([options.seed, number])
    pairs = np.array(
        [(p, a, b) for p in range(len(train.prompts)) for a, b in itertools.combinations(range(8), 2)]
    )
    x = train.features[pairs[:, 0], pairs[:, 1]] - train.features[pairs[:, 0], pairs[:, 2]]
    utility, judged = train.utility(rater), test.utility(rater)
    first, second = (torch.tensor(utility[pairs[:, 0], pairs[:, side]]) for side in (1, 2))
    said = rater.vote(first, second, rng)  # what the person would say of every pair, if asked
    asked: list[int] = []
    choice, rates = Choice(people=rng.permutation(len(pairs))[: options.batch], scorer={}), []
    while True:
        asked += choice.people[: options.batch].tolist()
        weights, committee = fit_rewards(x, said, asked, choice, rng)
        rates.append(win_rate(test.features, judged, weights))
        if len(asked) >= options.most:
            return np.array(rates)
        open_ones = np.setdiff1d(np.arange(len(pairs)), asked)
        choice = next_choice(way, x, pairs[:, 0], open_ones, weights, committee, options.batch, rng)


def fit_rewards(
    x: Floats, said: Floats, asked: Sequence[int], choice: Choice, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """(F,) reward fitted to votes and to what scorers settled, and (K, F) rewards of resampled votes."""
    sure = list(choice.scorer)[: len(asked)]  # never more than what people said
    rows = np.array([*asked, *sure])
    y = np.concatenate([said[asked], [float(choice.scorer[i] > 0.5) for i in sure]])
    weights = newton(x[rows], y, RIDGE)[0]
    committee = []
    for _ in range(COMMITTEE):
        some = rng.integers(len(asked), size=len(asked))
        taken = np.asarray(asked)[some]
        committee.append(newton(x[taken], said[taken], RIDGE)[0])
    return weights, np.array(committee)


def next_choice(
    way: str, x: Floats, prompt: NDArray[np.int64], open_ones: NDArray[np.int64], weights: Floats,
    committee: Floats, batch: int, rng: np.random.Generator,
) -> Choice:  # fmt: skip
    """What to ask next, in numbers of all pairs; the learnt reward's margin stands for the implicit one."""
    pool = Pool(prompt=prompt[open_ones], gaps=x[open_ones] @ committee.T, margin=x[open_ones] @ weights)
    found = chooser(way).choose(pool, batch, rng)
    people = open_ones[found.people]
    if len(people) < batch:  # the committee is sure of almost all: the rest is drawn at random
        rest = np.setdiff1d(open_ones, people)
        people = np.concatenate([people, rng.permutation(rest)[: batch - len(people)]])
    return Choice(people=people, scorer={int(open_ones[i]): p for i, p in found.scorer.items()})


def win_rate(features: Floats, utility: Floats, weights: Floats) -> float:
    """Share of P prompts where the picture that the reward picks beats the first one, ties half.

    Args:
        features: (P, S, F).
        utility: (P, S), noise-free.
        weights: (F,) of the reward.
    """
    picked = (features @ weights).argmax(1)
    gain = utility[np.arange(len(utility)), picked] - utility[:, 0]
    margin = 0.25 * base_sd(utility)
    return float(np.mean(0.5 + 0.5 * ((gain > margin).astype(float) - (gain < -margin))))


def votes_until(curve: Floats, batch: int) -> int | None:
    """Votes at which a person's win rate first is at the target for two fits running; None if it never is."""
    above = curve >= TARGET
    found = np.flatnonzero(above & np.append(above[1:], above[-1]))
    return (int(found[0]) + 1) * batch if len(found) else None


def _counts(curves: Floats, options: StudyOptions) -> Floats:
    """(people,) votes needed; the most that were given where the target was not reached."""
    found = [votes_until(c, options.batch) for c in curves]
    return np.array([options.most if n is None else n for n in found], dtype=float)


def _needed(way: str, curves: Floats, random: Floats, options: StudyOptions) -> Needed:
    votes = _counts(curves, options)
    mean, less = bootstrap(np.stack([votes, random - votes], 1), rng=options.seed)
    return Needed(
        way=way,
        votes=mean,
        less=less,
        never=sum(votes_until(c, options.batch) is None for c in curves),
        curve=curves.mean(0),
    )


def page(found: Sequence[Needed], options: StudyOptions, test: Scene) -> str:
    """The study's page, in Markdown."""
    people = _people(options)
    best = float(np.mean([_best(test, r) for r in people]))
    at = [n for n in (4, 10, 20, 40, 80, options.most) if n <= options.most]
    header = ["way", "votes to 0.70 [95 %]", "fewer than random", "never", *(f"after {n}" for n in at)]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for n in found:
        rates = [f"{n.curve[k // options.batch - 1]:.3f}" for k in at]
        less = "-" if n.way == "random" else _cell(n.less, "+.1f")
        lines.append(
            "| " + " | ".join([f"`{n.way}`", _cell(n.votes, ".1f"), less, str(n.never), *rates]) + " |"
        )
    about = ABOUT.format(
        people=options.people, noise=options.noise, batch=options.batch, prompts=len(test.prompts), best=best,
        most=options.most, committee=COMMITTEE,
    )  # fmt: skip
    return about + "\n" + "\n".join(lines) + "\n"


def _cell(value: Interval, form: str) -> str:
    return f"{value.value:{form}} [{value.low:{form}}, {value.high:{form}}]"


def _best(test: Scene, rater: Rater) -> float:
    utility = test.utility(rater)
    gain = utility.max(1) - utility[:, 0]
    return float(np.mean(0.5 + 0.5 * (gain > 0.25 * base_sd(utility))))
