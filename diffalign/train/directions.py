"""Directions of a training run: a mixture of scorers for each comparison, by its seed, and its new label."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from diffalign.data.cache import CachedSet, Unit
from diffalign.data.gaps import gaps, standardised
from diffalign.data.loader import Batch, Collate, Loader, LoaderOptions
from diffalign.data.records import Record
from diffalign.diffusion.corrupt import draw_seed
from diffalign.personalize.adapter import UserAdapter, save_adapter
from diffalign.personalize.encoders import About
from diffalign.personalize.encoders.direction import (
    DirectionOptions,
    parse_direction,
    relabel,
    sample_directions,
)
from diffalign.personalize.training import keep_users
from diffalign.policy import Policy
from diffalign.train.conditions import Conditioner, Conditions, first_rows, unit_conditions
from diffalign.train.config import TrainConfig
from diffalign.train.people import PeopleConfig
from diffalign.train.raters import add_adapter, compared, free_folder, make_people


class Directions:
    """Which direction a comparison gets, and how it is labelled for it.

    All hangs on the seed of the comparison, so that a run that goes on, and any number of processes, draw the
    same.

    Args:
        people: options of a recipe whose encoder is one of directions.
        records: pairs with a score of each of the encoder's scorers for both images, at the positions that
            the loader means.

    Raises:
        DataError: records that are no pairs, lack a score, or of which a scorer says nothing.
    """

    def __init__(self, people: PeopleConfig, records: Sequence[Record]) -> None:
        """Divide each scorer's gaps by their root mean square: scorers have no common unit."""
        assert isinstance(people.encoder, DirectionOptions)
        self.options, self.scorers = people.drawn, people.encoder.scorers
        self.gaps = torch.from_numpy(standardised(gaps(records, self.scorers))).float()  # (n, A)
        self.among = [parse_direction(text, self.scorers) for text in self.options.among]

    def draw(self, seed: int) -> Tensor:
        """(A,) unit vector of the comparison of this seed."""
        generator = torch.Generator().manual_seed(seed)
        if self.among:
            return self.among[int(torch.randint(len(self.among), (1,), generator=generator))]
        options = self.options
        return sample_directions(
            1, len(self.scorers), generator, signed=options.signed, single=options.single
        )[0]

    def drawn(self, seeds: Sequence[int]) -> Tensor:
        """(U, A) directions of comparisons."""
        return torch.stack([self.draw(draw_seed("direction", seed)) for seed in seeds])

    def others(self, seeds: Sequence[int]) -> Tensor:
        """(U, A) directions that they are compared with."""
        return torch.stack([self.draw(draw_seed("other direction", seed)) for seed in seeds])

    def leads(self, positions: Sequence[int], directions: Tensor) -> Tensor:
        """(U,) weighted gaps of the records' first sides over their second ones."""
        return relabel(self.gaps[list(positions)], directions)

    def value(self, position: int, seed: int) -> float:
        """Probability that the first side wins under the direction of a comparison; 0.5 is a tie."""
        lead = float(self.leads([position], self.drawn([seed]))[0])
        if abs(lead) <= self.options.tie:
            return 0.5
        if not self.options.temperature:
            return float(lead > 0)
        return float(torch.tensor(lead / self.options.temperature).sigmoid())


class DirectedLoader(Loader):
    """Batches whose pairs are labelled for the direction of each; see Loader for the arguments.

    Every visit of a pair has a label of its own. Where ties are dropped, a tie stays in its batch with
    weight 0.
    """

    def __init__(
        self,
        data: CachedSet,
        collate: Collate,
        options: LoaderOptions,
        directions: Directions,
        *,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Start at position 0."""
        # what was voted does not count, so that nothing is a tie before its direction is drawn
        units = tuple(replace(u, undecided=False, margin=None, soft=None) for u in data.units)
        super().__init__(replace(data, units=units), collate, options, rank=rank, world=world)
        self.directions = directions

    def _fingerprint(self) -> str:
        scores = hashlib.sha256(self.directions.gaps.numpy().tobytes()).hexdigest()
        return hashlib.sha256(f"{super()._fingerprint()} {scores}".encode()).hexdigest()

    def labelled(self, visit: int, unit: Unit) -> Unit:
        """See Loader."""
        p = self.directions.value(unit.sample, draw_seed(self.options.seed, visit, unit.sample))
        weight = 0.0 if p == 0.5 and self.options.ties == "drop" else unit.weight
        return replace(unit, values=(p, 1 - p), weight=weight)


class Directed:
    """Tokens of the directions of batches, on every process alike.

    Args:
        config: recipe.
        adapter: the policy's.
        directions: those that the loader labels by.
    """

    def __init__(self, config: TrainConfig, adapter: UserAdapter, directions: Directions) -> None:
        """See the class."""
        assert config.people is not None
        self.config, self.adapter, self.directions = config.people, adapter, directions
        self.compares, self.contrasts = compared(config)

    def conditions(self, batch: Batch, units: Sequence[int]) -> Conditions:
        """See Conditioner."""
        first = first_rows(batch.group)
        positions, seeds = [int(batch.sample[i]) for i in first], [units[i] for i in first]
        keep, own = keep_users(seeds, self.config.dropout), self.directions.drawn(seeds)
        if not self.compares:
            return unit_conditions(batch.group, self._tokens(own, keep))
        other = self.directions.others(seeds)
        leads = [self.directions.leads(positions, d) for d in (own, other)]
        against = (leads[0] * leads[1] < 0) & keep
        return unit_conditions(batch.group, self._tokens(own, keep), self._tokens(other, keep), against)

    def _tokens(self, directions: Tensor, keep: Tensor) -> Tensor:
        encoder = self.adapter.encoder
        device = encoder.nobody.device
        return encoder.encoded(About(direction=directions.to(device)), keep.to(device)).tokens

    @torch.no_grad()
    def tokens(self, name: str) -> Tensor:
        """See Conditioner."""
        direction = parse_direction(name, self.directions.scorers)[None]
        return self._tokens(direction, torch.ones(1, dtype=torch.bool))[0]

    def export(self, folder: Path) -> Path:
        """Write the adapter, which names its scorers, into a new folder of an export, and return it."""
        return save_adapter(self.adapter, free_folder(folder))


def make_conditioner(config: TrainConfig, policy: Policy, records: Sequence[Record]) -> Conditioner | None:
    """What batches are conditioned on besides their prompts, attached to the policy; None without people.

    Args:
        config: recipe.
        policy: on its device, before its reference is fixed.
        records: those that the loader's positions mean.

    Raises:
        DataError: records that do not say who judged, or lack scores.
        ValueError: the model takes no people; see ``make_people``.
        RuntimeError: the backend of the attention cannot be used.
    """
    if config.people is None:
        return None
    if not isinstance(config.people.encoder, DirectionOptions):
        return make_people(config, policy, records)
    directions = Directions(config.people, records)
    return Directed(config, add_adapter(config, policy), directions)
