"""A population with tastes: people who share one in part, and their votes on pictures that all see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from diffalign.data.records import Record
    from diffalign.world.grammar import Prompt, Split
    from diffalign.world.raters import Rater

TRIES = 50
"""Pairs that a person is shown for each vote that is wanted, at most: some are ties."""


@dataclass(frozen=True, kw_only=True)
class PopulationConfig:
    """Simulated people of some tastes, some of them held out; person i has taste i modulo their number."""

    tastes: tuple[str, ...] = (
        "dark", "light", "large", "small", "dark+large", "dark+small", "light+large", "light+small",
    )  # fmt: skip
    """Named tastes, and sums of them (large+dark); see docs/shapes_world.md."""
    people: int = 200
    """How many there are."""
    held_out: int = 40
    """How many of them, the last ones, never vote on what is trained on."""
    votes: int = 30
    """Votes of each person on pairs of pictures of one prompt, drawn at random; ties are replaced."""
    apart: int = 8
    """Of the pictures of each prompt (per_prompt) so many are shown to those who are held out, and only to
    them."""
    individual: float = 0.25
    """Scale of what is a person's own, over the axes of all tastes; the taste's scale is 1."""
    temperature: float = 0.2
    """Noise of the votes (Bradley-Terry), in s.d. of the taste."""
    careless_people: int = 0
    """How many vote at random half of the time."""
    seed: int = 0
    """Seed of people and votes."""

    def __post_init__(self) -> None:
        """Check names and ranges.

        Raises:
            ValueError: an unknown taste, or a number out of range.
        """
        for taste in self.tastes:
            taste_weights(taste)
        if len(self.tastes) < 2 or self.votes < 1 or self.apart < 2:
            raise ValueError(
                f"population has {len(self.tastes)} tastes, {self.votes} votes of each and {self.apart} "
                "pictures apart; it needs at least 2, 1 and 2"
            )
        if not 0 <= self.held_out < self.people or not 0 <= self.careless_people <= self.people:
            raise ValueError(
                f"population.held_out is {self.held_out} and careless_people {self.careless_people} of "
                f"{self.people} people; there must be people left to learn from"
            )
        if self.temperature <= 0 or self.individual < 0:
            raise ValueError("population.temperature must be above 0 and individual at least 0")

    @property
    def axes(self) -> tuple[str, ...]:
        """All axes that some taste weighs, in a fixed order."""
        return tuple(dict.fromkeys(axis for taste in self.tastes for axis in taste_weights(taste)))

    def raters(self) -> dict[str, Rater]:
        """All people by name; the same seed gives the same people."""
        rng = np.random.default_rng([self.seed, 11])
        careless = set(rng.permutation(self.people)[: self.careless_people].tolist())
        return {name: self._person(name, i in careless, rng) for i, name in enumerate(self.names)}

    @property
    def names(self) -> list[str]:
        """Everybody."""
        return [f"person-{i:03d}" for i in range(self.people)]

    @property
    def seen(self) -> list[str]:
        """People whose votes are trained on."""
        return self.names[: self.people - self.held_out]

    @property
    def unseen(self) -> list[str]:
        """People who are held out."""
        return self.names[self.people - self.held_out :]

    def taste_of(self, name: str) -> str:
        """Taste of somebody, by name."""
        return self.tastes[int(name.rpartition("-")[2]) % len(self.tastes)]

    def _person(self, name: str, careless: bool, rng: np.random.Generator) -> Rater:
        from diffalign.world.raters import Rater

        own = rng.standard_normal(len(self.axes))
        own *= self.individual / np.linalg.norm(own)
        weights = dict(zip(self.axes, own.tolist(), strict=True))
        for axis, weight in taste_weights(self.taste_of(name)).items():
            weights[axis] += weight
        return Rater(
            name=name,
            weights=weights,
            temperature=self.temperature,
            careless=0.5 if careless else 0.0,
        )


def taste_weights(name: str) -> dict[str, float]:
    """Weights of a named taste, or of a sum of some (large+dark), of length 1.

    Raises:
        ValueError: no such taste, or tastes that cancel.
    """
    from diffalign.world.raters import named_rater

    found: dict[str, float] = {}
    for part in name.split("+"):
        for axis, weight in named_rater(part).weights.items():
            found[axis] = found.get(axis, 0.0) + weight
    length = float(np.linalg.norm(list(found.values())))
    if length == 0:
        raise ValueError(f"the tastes of {name!r} cancel: name others")
    return {axis: weight / length for axis, weight in found.items()}


def population_prompts(split: Split) -> list[Prompt]:
    """Prompts of a split that say colour and shape alone, and so leave every axis of every taste open."""
    from diffalign.world.grammar import single_prompts

    return [p for p in single_prompts(split) if p.size is None and p.background is None]


def votes_of(
    raters: Mapping[str, Rater],
    prompts: Sequence[Prompt],
    pictures: Tensor,
    votes: int,
    seed: int | Sequence[int],
) -> list[Record]:
    """Decided votes of people on pairs of pictures of one prompt, all drawn at random.

    Args:
        raters: who votes, by name.
        prompts: P of them.
        pictures: (P, S, 3, 64, 64) uint8, the same for everybody.
        votes: how many of each person.
        seed: of pairs and votes.

    Raises:
        ValueError: somebody finds hardly anything to decide.
    """
    from diffalign.data.records import BytesImage, Record
    from diffalign.world.oracle import measure

    prompts_each = [p for p in prompts for _ in range(pictures.shape[1])]
    found = measure(pictures.flatten(0, 1).float() / 255)
    images = [[BytesImage.from_array(x.permute(1, 2, 0).numpy()) for x in row] for row in pictures]
    records = []
    for number, (name, rater) in enumerate(raters.items()):
        rng = np.random.default_rng([*np.atleast_1d(seed).tolist(), number])
        utility = rater.utility(found, prompts_each).unflatten(0, (len(prompts), -1))
        for p, a, b, vote in _decided(rater, utility, votes, rng):
            sides = (images[p][a], images[p][b])
            records.append(
                Record(prompt=str(prompts[p]), images=sides, kind="pair", values=(vote, 1 - vote), rater=name)
            )
    return records


def _decided(
    rater: Rater, utility: Tensor, votes: int, rng: np.random.Generator
) -> list[tuple[int, int, int, float]]:
    """``votes`` decided votes as (prompt, first, second, 1 or 0), for utilities (P, S)."""
    prompts, seeds = utility.shape
    p = rng.integers(prompts, size=TRIES * votes)
    a = rng.integers(seeds, size=TRIES * votes)
    b = (a + rng.integers(1, seeds, size=TRIES * votes)) % seeds
    said = rater.vote(utility[p, a], utility[p, b], rng)
    kept = np.flatnonzero(said != 0.5)[:votes]
    if len(kept) < votes:
        raise ValueError(
            f"{rater.name} decided {len(kept)} of {TRIES * votes} pairs, and {votes} votes are wanted: "
            "show pictures that differ in what people care for"
        )
    return [(int(p[i]), int(a[i]), int(b[i]), float(said[i])) for i in kept]
