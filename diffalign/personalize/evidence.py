"""What the people of a batch are known by: table rows, drawn votes, profiles, as their encoder needs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffalign.data.records import DataError, Record
from diffalign.personalize.encoders.about import About, Examples, Profile, pad_examples
from diffalign.personalize.history import Histories

PairFeatures = tuple[Tensor, Tensor, Tensor]
"""(F,) unit features of prompt, winner and loser."""
Profiles = Callable[[Sequence[str]], Profile]
"""Profiles of people by the names of raters."""
BATCH = 64


class Evidence:
    """Describes people for an encoder; the same seeds give the same description.

    Args:
        needs: fields of About that the encoder looks at (``EncoderOptions.needs``).
        histories: whose votes are where.
        table: raters in the order of the table's rows.
        features: of the pair at each position, for encoders of votes; see ``embed_pairs``.
        profiles: for encoders of profiles.
        most: a person is described by k votes, k drawn evenly from 1 to ``most``.

    Raises:
        ValueError: something that the encoder needs is not given, or ``most`` is below 1.
    """

    def __init__(
        self,
        needs: frozenset[str],
        histories: Histories,
        *,
        table: Sequence[str] = (),
        features: Mapping[int, PairFeatures] | None = None,
        profiles: Profiles | None = None,
        most: int = 8,
    ) -> None:
        """See the class."""
        given = {"rows": bool(table), "examples": features is not None, "profile": profiles is not None}
        lacking = sorted(n for n in needs if not given.get(n, False))
        if lacking:
            raise ValueError(
                f"the user encoder needs {', '.join(lacking)}, and people of these data are not known by it: "
                "give it, or take another encoder"
            )
        if most < 1:
            raise ValueError(f"most is {most}; a person is described by at least 1 vote")
        self.needs, self.histories, self.most = needs, histories, most
        self.features, self.profiles = features, profiles
        self.places = {rater: i for i, rater in enumerate(table)}

    def about(
        self,
        positions: Sequence[int],
        seeds: Sequence[int],
        raters: Sequence[str] | None = None,
        count: int | None = None,
    ) -> About:
        """What stands for the person of each of B records, without the record's own prompt and images.

        Args:
            positions: of the records, as a batch carries them in ``sample``.
            seeds: one for each, of its comparison unit.
            raters: other people in place of those who judged, for swaps.
            count: exactly so many votes, where there are so many; None draws.

        Raises:
            DataError: a record that does not say who judged.
        """
        people = self._people(positions) if raters is None else list(raters)
        rows = torch.tensor([self.places.get(p, -1) for p in people]) if "rows" in self.needs else None
        profile = self.profiles(people) if self.profiles is not None and "profile" in self.needs else None
        examples = self._examples(people, positions, seeds, count) if "examples" in self.needs else None
        return About(rows=rows, examples=examples, profile=profile)

    def _people(self, positions: Sequence[int]) -> list[str]:
        found = [self.histories.raters[p] for p in positions]
        nameless = [p for p, rater in zip(positions, found, strict=True) if rater is None]
        if nameless:
            raise DataError(f"record {nameless[0]} does not say who judged: leave such records out")
        return [rater for rater in found if rater is not None]

    def _examples(
        self, people: Sequence[str], positions: Sequence[int], seeds: Sequence[int], count: int | None
    ) -> Examples:
        features = self.features
        assert features is not None  # the constructor has looked
        votes = []
        for person, position, seed in zip(people, positions, seeds, strict=True):
            rng = np.random.default_rng(seed)
            k = int(rng.integers(1, self.most + 1)) if count is None else count
            votes.append([features[p] for p in self.histories.support(person, k, rng, [position])])
        if any(votes):
            return pad_examples(votes)
        width = next(iter(features.values()))[0].shape  # nobody has a vote to spare: all are nobody
        empty = torch.zeros(len(people), 1, *width)
        mask = torch.zeros(len(people), 1, dtype=torch.bool)
        return Examples(prompt=empty, winner=empty, loser=empty, mask=mask)


def embed_pairs(records: Sequence[Record], histories: Histories, towers: Any) -> dict[int, PairFeatures]:
    """Features of all decided pairs by position, on the CPU; a picture or prompt goes through a tower once.

    Args:
        records: as given to ``histories``.
        histories: whose pairs.
        towers: a scorer with ``encode_images`` and ``encode_prompts``, see ``scorers.two_tower``.
    """
    wanted = sorted(p for some in histories.of.values() for p in some)
    images = list(dict.fromkeys(image for p in wanted for image in records[p].images))
    prompts = list(dict.fromkeys(records[p].prompt for p in wanted))
    seen = dict(zip(images, in_batches(images, lambda some: _encoded(towers, some)), strict=True))
    read = dict(zip(prompts, in_batches(prompts, towers.encode_prompts), strict=True))
    found = {}
    for p in wanted:
        winner = records[p].winner
        sides = records[p].images[winner], records[p].images[1 - winner]
        found[p] = (read[records[p].prompt], seen[sides[0]], seen[sides[1]])
    return found


@torch.no_grad()
def in_batches(items: Sequence[Any], encode: Callable[[list[Any]], Tensor]) -> list[Tensor]:
    """(F,) float32 features of each item, on the CPU, encoded some at a time."""
    parts = [encode(list(items[i : i + BATCH])).float().cpu() for i in range(0, len(items), BATCH)]
    return [row for part in parts for row in part]


def _encoded(towers: Any, images: Sequence[Any]) -> Tensor:
    from scorers.learners import stack_images

    found: Tensor = towers.encode_images(stack_images(towers, [image.read() for image in images]))
    return found
