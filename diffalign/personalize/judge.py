"""Judges of people for evaluation alone: a reward for each person, trained on people whom training never saw.

The reward is PAL (``scorers.pal``; arXiv:2406.08469) or VPL (``personalize.vpl``; arXiv:2408.10075) on frozen
features. The judge of somebody is made of a part of that person's own votes with everything else fixed, and
how well it foretells the rest always stands beside what it says.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from diffalign.data.split import split_by
from diffalign.personalize.vpl import VplOptions, train_vpl
from scorers.base import ScorerBase
from scorers.images import ImageLike
from scorers.pal import Pal
from scorers.pal_heads import PalHead, PalOptions
from scorers.train import evaluate, train_scorer
from scorers.train_options import TrainOptions, preset
from scorers.two_tower import TwoTower
from scorers.votes import Vote


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """How judges of PAL's type are trained; ``VplOptions`` in their place train those of VPL's."""

    groups: int = 8
    """Prototypes of tastes."""
    width: int = 512
    """Width of the space in which pictures and people meet."""
    fitted: float = 0.5
    """Share of a person's prompts whose votes fit the judge; the others tell how good it is. In (0, 1)."""
    validation: float = 0.1
    """Share of prompts whose votes choose the step that is kept, in (0, 1)."""
    training: TrainOptions = field(default_factory=lambda: preset("pal"))
    """See scorers.train; the published training of PAL unless told otherwise."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: an option out of range.
        """
        if self.groups < 1 or self.width < 1:
            raise ValueError(f"groups is {self.groups} and width {self.width}; both must be at least 1")
        if not 0 < self.fitted < 1 or not 0 < self.validation < 1:
            raise ValueError(
                f"fitted is {self.fitted} and validation {self.validation}; both must be in (0, 1)"
            )

    @property
    def seed(self) -> int:
        """Of weights, batches and splits."""
        return self.training.seed


class PersonalReward(Protocol):
    """A trained reward that takes in people by their votes."""

    def fit_user(
        self,
        name: str,
        first: Sequence[ImageLike],
        second: Sequence[ImageLike],
        prompts: Sequence[str],
        labels: Sequence[float],
    ) -> ScorerBase:
        """Add somebody by votes; ValueError where the name is taken or votes say nothing."""
        ...

    def for_user(self, name: str) -> ScorerBase:
        """The pointwise scorer of somebody who was added; ValueError where nobody of that name was."""
        ...


@dataclass(frozen=True, kw_only=True)
class Judges:
    """A trained reward, and the people for whom it can judge."""

    reward: PersonalReward
    accuracy: Mapping[str, float]
    """For each person the share of decided votes, on prompts that the judge was not fitted to, that it
    foretells; NaN where there are none."""

    def of(self, name: str) -> ScorerBase:
        """The scorer of somebody.

        Raises:
            ValueError: unknown.
        """
        return self.reward.for_user(name)

    @property
    def mean_accuracy(self) -> float:
        """Mean over the people who have votes to tell."""
        known = [a for a in self.accuracy.values() if not math.isnan(a)]
        return sum(known) / len(known) if known else math.nan


def train_judges(
    backbone: TwoTower,
    votes: Sequence[Vote],
    judged: Sequence[Vote],
    trained_on: Collection[str],
    options: JudgeOptions | VplOptions | None = None,
) -> Judges:
    """Train a reward on some people's votes, then make a judge for each of others.

    Args:
        backbone: towers that give the features; frozen.
        votes: of the people from whom the reward learns how tastes differ; ``user`` named in each.
        judged: votes of the people to be judged for.
        trained_on: people whose votes the model under evaluation was trained on.
        options: JudgeOptions for PAL, VplOptions for VPL; None is the former.

    Raises:
        ValueError: a vote without a user; somebody in ``votes`` whom the model was trained on (a judge must
            not have learnt what the model learnt); the same person on both sides; too few votes.
    """
    options = options or JudgeOptions()
    _check(votes, judged, trained_on)
    reward: PersonalReward
    if isinstance(options, JudgeOptions):
        reward = _train_pal(backbone, votes, options)
    else:
        reward = train_vpl(backbone, votes, options)
    own: dict[str, list[Vote]] = {}
    for vote in judged:
        own.setdefault(vote.user, []).append(vote)
    accuracy = {
        name: fit_judge(reward, some, name, options.fitted, options.seed) for name, some in own.items()
    }
    return Judges(reward=reward, accuracy=accuracy)


def _train_pal(backbone: TwoTower, votes: Sequence[Vote], options: JudgeOptions) -> Pal:
    pal = new_reward(backbone, [v.user for v in votes], options)
    rest, chosen = split_by(votes, lambda v: v.prompt, options.validation, options.seed)
    train_scorer(pal, rest, chosen, options.training)
    return pal


def new_reward(backbone: TwoTower, people: Sequence[str], options: JudgeOptions) -> Pal:
    """An untrained PAL for these people on a backbone; the same seed gives the same weights."""
    features = backbone.encode_prompts([""]).shape[1]
    shape = PalOptions(
        groups=options.groups, feature=features, width=options.width, users=tuple(dict.fromkeys(people))
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.training.seed)
        return Pal(backbone, PalHead(shape).to(backbone.device))


def fit_judge(
    reward: PersonalReward, votes: Sequence[Vote], name: str, fitted: float, seed: int = 0
) -> float:
    """Add somebody to the people of a reward by the votes on a share ``fitted`` of their prompts.

    Returns:
        The share of decided votes on the other prompts that are foretold; NaN where there are none.

    Raises:
        ValueError: somebody who is known already, or no votes.
    """
    rest, own = split_by(votes, lambda v: v.prompt, fitted, seed)
    if not own:
        own, rest = list(votes), []
    first, second = [v.first for v in own], [v.second for v in own]
    judge = reward.fit_user(name, first, second, [v.prompt for v in own], [v.label for v in own])
    decided = [v for v in rest if v.label != 0.5]
    return evaluate(judge, decided, 0.0).decided if decided else math.nan


def _check(votes: Sequence[Vote], judged: Sequence[Vote], trained_on: Collection[str]) -> None:
    if not votes or not judged or not all(v.user for v in (*votes, *judged)):
        raise ValueError(
            "judges need votes to train on and votes to be fitted to, each with its user: keep raters in "
            "the data"
        )
    people, known = {v.user for v in votes}, set(trained_on)
    if people & known:
        raise ValueError(
            f"{len(people & known)} people of the judge's training, {min(people & known)!r} for one, were "
            "trained on by the model: split people first, and train the judge on others"
        )
    both = people & {v.user for v in judged}
    if both:
        raise ValueError(f"{min(both)!r} is on both sides: judge for people whom the reward did not see")
