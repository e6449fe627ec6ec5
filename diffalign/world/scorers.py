"""Simulated people and the oracle as scorers: ``scorers.load("shapes-large")``, ``scorers.load("shapes-
obedience")``.

Registered through the entry-point group ``scorers``, one name for each taste; module attributes are made on
demand. Person 7 of the population of seed 3 is ``scorers.load("diffalign.world.scorers:member_3_7")``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from diffalign.world.grammar import Prompt, parse
from diffalign.world.oracle import measure, obeys
from diffalign.world.raters import TASTES, Population, named_rater
from scorers.base import ScorerBase

ScorePrompts = Callable[[Tensor, Sequence[Prompt]], Tensor]


class WorldScorer(ScorerBase):
    """Scores 64 x 64 pictures of the shapes world exactly, without weights and without gradient."""

    differentiable = False
    licence = "Apache-2.0"
    citation = "diffalign, docs/shapes_world.md"

    def __init__(self, name: str, score: ScorePrompts) -> None:
        """``score`` maps (B, 3, 64, 64) pictures in [0, 1] and B prompts to (B,) scores."""
        super().__init__()
        self.name, self._score = name, score

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """See ScorerBase: only prompts of the world's grammar."""
        for prompt in prompts:
            parse(prompt)

    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        """See Scorer; raises ValueError for prompts outside the grammar."""
        return self._score(x01.cpu(), [parse(p) for p in prompts]).float()


class TasteLoader:
    """What the registry holds for one taste: loads its noise-free utility as a scorer."""

    about = WorldScorer

    def __init__(self, taste: str) -> None:
        """``taste`` is a key of TASTES."""
        self.taste = taste

    def load(self, weights: Path | None, *, device: str | torch.device, dtype: torch.dtype) -> WorldScorer:
        """Make the scorer; weights, device and dtype do not matter."""
        return WorldScorer(f"shapes-{self.taste}", named_rater(self.taste).score)


class ObedienceLoader:
    """What the registry holds for ``shapes-obedience``."""

    about = WorldScorer

    def load(self, weights: Path | None, *, device: str | torch.device, dtype: torch.dtype) -> WorldScorer:
        """Make the scorer: 1 where shape, colour, background and relation are as asked, else 0."""
        return WorldScorer("shapes-obedience", lambda x, p: obeys(measure(x), p).all.float())


class MemberLoader:
    """What stands for one person of a population: loads its noise-free utility as a scorer.

    Args:
        number: of the person, from 0.
        population: who is drawn.
    """

    about = WorldScorer

    def __init__(self, number: int, population: Population) -> None:
        """See the class."""
        self.number, self.population = number, population

    def load(self, weights: Path | None, *, device: str | torch.device, dtype: torch.dtype) -> WorldScorer:
        """Make the scorer; weights, device and dtype do not matter.

        Raises:
            ValueError: nobody has this number.
        """
        people = self.population.raters()
        if not 0 <= self.number < len(people):
            raise ValueError(f"there is no person {self.number}; the population has 0 to {len(people) - 1}")
        person = people[self.number]
        return WorldScorer(f"shapes-member-{self.population.seed}-{self.number}", person.score)


def member(seed: int, number: int) -> MemberLoader:
    """Person ``number`` (0 to 19) of the population of this seed; other sizes by ``MemberLoader``."""
    return MemberLoader(number, Population(seed=seed))


obedience = ObedienceLoader()


def __getattr__(name: str) -> TasteLoader | MemberLoader:
    """Loader of the taste ``name`` (underscores for hyphens) or of ``member_SEED_NUMBER``."""
    parts = name.split("_")
    if parts[0] == "member" and len(parts) == 3 and all(part.isdecimal() for part in parts[1:]):
        return member(int(parts[1]), int(parts[2]))
    taste = name.replace("_", "-")
    if taste not in TASTES:
        raise AttributeError(f"no taste {taste!r}; there are {', '.join(TASTES)}")
    return TasteLoader(taste)
