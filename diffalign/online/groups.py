"""Which pictures an iteration makes: K of each prompt, with seeds that depend on nothing but their place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from diffalign.diffusion.corrupt import draw_seed
from diffalign.online.blocks import GroupConfig


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A picture to be made."""

    prompt: str
    number: int
    """Of the prompt (and of the reward that it asks for) among all, for good: statistics of a prompt outlive
    the iteration."""
    group: int
    """Place of the prompt in the iteration."""
    seed: int
    start: int
    """Seed of the first latent."""
    of_reference: bool
    """Whether the reference makes it."""
    condition: int = 0
    """Reward that it is made for, where each has a word (Parrot)."""
    word: str = ""
    """That word; rewards judge by the prompt without it."""

    @property
    def asked(self) -> str:
        """What the policy is given."""
        return f"{self.word} {self.prompt}".strip()


class Groups:
    """The K-repeat sampler: every prompt once an epoch, in another order each time, K pictures of each.

    With words of rewards, a prompt has a group for each of them, one after the other.
    """

    def __init__(
        self, prompts: Sequence[str], config: GroupConfig, seed: int, words: Sequence[str] = ()
    ) -> None:
        """Keep the prompts; the number of ``words`` divides ``config.prompts``.

        Raises:
            ValueError: there are fewer prompts than an iteration takes.
        """
        self.words = list(words) or [""]
        self.count = config.prompts // len(self.words)
        if len(prompts) < self.count:
            raise ValueError(
                f"groups.prompts is {config.prompts}, and there are {len(prompts)} prompts: lower it, or "
                "give more"
            )
        self.prompts, self.config, self.seed = list(prompts), config, seed

    def numbers(self, iteration: int) -> list[int]:
        """Prompts of an iteration, by number."""
        first, count = iteration * self.count, len(self.prompts)
        places = range(first, first + self.count)
        return [self._order(p // count)[p % count] for p in places]

    def planned(self, iteration: int) -> list[Planned]:
        """Pictures of an iteration, of all processes; those of a prompt are adjacent."""
        asked = [(number, c) for number in self.numbers(iteration) for c in range(len(self.words))]
        return [
            self._planned(iteration, group, number, condition, k)
            for group, (number, condition) in enumerate(asked)
            for k in range(self.config.images)
        ]

    def _planned(self, iteration: int, group: int, number: int, condition: int, k: int) -> Planned:
        place = ("online", self.seed, iteration, group)
        seed = draw_seed(*place, k)
        return Planned(
            prompt=self.prompts[number],
            number=number * len(self.words) + condition,
            group=group,
            seed=seed,
            start=draw_seed(*place, "start") if self.config.same_start else seed,
            of_reference=k < int(self.config.reference_share * self.config.images),
            condition=condition,
            word=self.words[condition],
        )

    def _order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(draw_seed("prompts", self.seed, epoch))
        order: list[int] = torch.randperm(len(self.prompts), generator=generator).tolist()
        return order


def share_of(count: int, rank: int, world: int) -> range:
    """Places of ``count`` planned pictures that a process makes; ``world`` divides ``count``."""
    own = count // world
    return range(rank * own, (rank + 1) * own)
