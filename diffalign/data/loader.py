"""Batches of whole comparisons from the cache: the same for any number of processes, and resumable."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from diffalign.data.cache import CachedSet, Unit
from diffalign.data.records import DataError, Kind
from diffalign.device import send

Collate = Callable[[list[dict[str, Tensor]]], dict[str, Tensor]]
Ties = Literal["keep", "drop", "soft"]
PROMPT, VIEW = 1, 2  # tags that keep the draws of one unit apart


@dataclass(kw_only=True)
class Batch:
    """N rows, one per image; the rows of one comparison are adjacent. Of a pair the winner comes first."""

    mean: Tensor
    """(N, C, h, w) fp32 posterior mean, unscaled."""
    logvar: Tensor | None
    """(N, C, h, w) fp32 posterior log-variance."""
    cond: dict[str, Tensor]
    """Collated prompt embeddings, first dimension N."""
    group: Tensor
    """(N,) int64, 0..groups-1."""
    role: Tensor
    """(N,) int64: +1 preferred or liked, -1 dispreferred or disliked, 0 tie or unknown.

    Of a ranking the best are +1, the others -1."""
    soft: Tensor | None
    """(N,) fp32 probability that the row beats its partner; pairs only."""
    score: Tensor | None
    """(N,) fp32 ranking scores; rankings only."""
    weight: Tensor
    """(N,) fp32 weight of the row's comparison."""
    sizes: Tensor
    """(N, 6) int64: original height, width, crop top, left, target height, width."""
    sample: Tensor
    """(N,) int64: position of the record in the list that the cache was made from."""
    epoch: Tensor
    """(N,) int64: how often the record was seen before; with ``sample`` it seeds what is drawn for a row."""

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        moved: dict[str, Any] = {name: _move(v, device) for name, v in vars(self).items() if name != "cond"}
        return Batch(cond={name: send(v, device) for name, v in self.cond.items()}, **moved)


@dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """What the loader does with the comparisons."""

    batch: int = 16
    """Comparisons per step over all processes."""
    seed: int = 0
    """Of order, prompt dropout and mirrored views."""
    ties: Ties = "drop"
    """keep: role 0 and soft .5; drop: leave them out; soft: file order with roles +1, -1 and soft .5."""
    prompt_dropout: float = 0.0
    """Share of comparisons whose prompt is emptied; one draw for all images of one."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.batch < 1 or self.seed < 0:
            raise DataError(f"batch is {self.batch} and seed {self.seed}; they must be at least 1 and 0")
        if not 0 <= self.prompt_dropout <= 1:
            raise DataError(f"prompt_dropout is {self.prompt_dropout}; it must be in [0, 1]")
        if self.ties not in ("keep", "drop", "soft"):
            raise DataError(f"ties is {self.ties!r}; it must be keep, drop or soft")


class Loader:
    """Endless batches; unit i of the stream is unit ``order[i % n]`` of epoch ``i // n``, whoever asks.

    Each step takes the next ``batch`` units of the stream and gives this process its own adjacent part: put
    together in order of rank, the parts of all processes are the batch of a single process. A batch may reach
    into the next epoch: nothing is dropped, and half the batch in twice the steps is the same stream.

    Args:
        data: the cached comparisons.
        collate: ``policy.collate_prompts``.
        options: see LoaderOptions.
        rank: this process.
        world: number of processes.
        weights: weight of each record, by its position in the records; 1 by default.

    Raises:
        DataError: fewer units per step than processes, nothing left without ties, or a weight that is
            missing, negative or not finite.
    """

    def __init__(
        self,
        data: CachedSet,
        collate: Collate,
        options: LoaderOptions | None = None,
        *,
        rank: int = 0,
        world: int = 1,
        weights: Sequence[float] | None = None,
    ) -> None:
        """Start at position 0."""
        self.data, self.collate, self.options = data, collate, options or LoaderOptions()
        self.rank, self.world, self.weights = rank, world, weights
        if not 0 <= rank < world or self.options.batch < world:
            raise DataError(
                f"batch {self.options.batch} cannot be shared by process {rank} of {world}; "
                "each needs at least one comparison per step"
            )
        self.units = [u for u in data.units if self.options.ties != "drop" or not u.undecided]
        if not self.units:
            raise DataError(
                f"all {len(data.units)} comparisons are ties or unknown; set ties to keep or soft"
            )
        self._check_weights()
        self.position = 0
        self._order: tuple[int, np.ndarray] | None = None

    @property
    def epoch(self) -> int:
        """Epoch of the next unit."""
        return self.position // len(self.units)

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches from the present position on, without end."""
        while True:
            places = self.next_places()
            # Moved before the batch is handed out: a state saved while it is worked on points behind it.
            self.position += self.options.batch
            yield self.assemble(places)

    def next_places(self) -> list[tuple[int, Unit]]:
        """(epoch, unit) of this process in the next step."""
        start, size = self.position, self.options.batch
        mine = range(start + self.rank * size // self.world, start + (self.rank + 1) * size // self.world)
        return [(i // len(self.units), self.units[self._index(i)]) for i in mine]

    def assemble(self, places: Sequence[tuple[int, Unit]]) -> Batch:
        """Read the rows of some units and stack them."""
        rows = [row for number, (epoch, unit) in enumerate(places) for row in self._rows(number, epoch, unit)]
        latents = [self.data.latents.get(row.latent) for row in rows]
        pairs, ranking = self.data.kind == "pair", self.data.kind == "ranking"
        return Batch(
            mean=torch.stack([x["mean"].float() for x in latents]),
            logvar=torch.stack([x["logvar"].float() for x in latents]),
            cond=self.collate(self._conditions([row.prompt for row in rows])),
            group=torch.tensor([row.group for row in rows]),
            role=torch.tensor([row.role for row in rows]),
            soft=torch.tensor([row.value for row in rows], dtype=torch.float32) if pairs else None,
            score=torch.tensor([row.value for row in rows], dtype=torch.float32) if ranking else None,
            weight=torch.tensor([self._weight(row.sample) for row in rows], dtype=torch.float32),
            sizes=torch.stack([x["sizes"] for x in latents]),
            sample=torch.tensor([row.sample for row in rows]),
            epoch=torch.tensor([row.epoch for row in rows]),
        )

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, int | str]:
        """Position in the stream, and what it is a position in."""
        return {
            "position": self.position,
            "seed": self.options.seed,
            "units": len(self.units),
            "data": self._fingerprint(),
        }

    def load_state_dict(self, state: Mapping[str, int | str]) -> None:
        """Continue where ``state`` was taken, also with another batch size or number of processes.

        Raises:
            DataError: the state is of other data, another transform or encoder, or another seed.
        """
        mine = self.state_dict()
        for name in ("data", "units", "seed"):
            if state.get(name) != mine[name]:
                raise DataError(
                    f"cannot resume: the {name} of the checkpoint is {state.get(name)!r}, "
                    f"of this run {mine[name]!r}; use the same data, resolution, ties and seed"
                )
        self.position = int(state["position"])

    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for unit in self.units:
            digest.update(repr((unit.sample, unit.values, unit.latents, unit.prompts)).encode())
        return digest.hexdigest()

    # ------------------------------------------------------------------ rows

    def _index(self, i: int) -> int:
        epoch, place = divmod(i, len(self.units))
        if self._order is None or self._order[0] != epoch:
            self._order = (
                epoch,
                np.random.default_rng([self.options.seed, epoch]).permutation(len(self.units)),
            )
        return int(self._order[1][place])

    def _draw(self, epoch: int, unit: Unit, tag: int) -> float:
        """Uniform in [0, 1); depends on seed, epoch and sample alone, so not on who loads it."""
        return float(np.random.default_rng([self.options.seed, epoch, unit.sample, tag]).random())

    def _rows(self, group: int, epoch: int, unit: Unit) -> list[_Row]:
        dropped = self._draw(epoch, unit, PROMPT) < self.options.prompt_dropout
        latents = unit.latents[int(self._draw(epoch, unit, VIEW) * len(unit.latents))]
        prompts = (self.data.empty_prompt,) * len(latents) if dropped else unit.prompts
        order = (
            (1, 0) if self.data.kind == "pair" and unit.values[1] > unit.values[0] else range(len(latents))
        )
        roles = unit_roles(self.data.kind, unit.values, self.options.ties)
        return [
            _Row(
                group=group,
                role=roles[i],
                value=unit.values[i],
                latent=latents[i],
                prompt=prompts[i],
                sample=unit.sample,
                epoch=epoch,
            )
            for i in order
        ]

    def _conditions(self, keys: Sequence[str]) -> list[dict[str, Tensor]]:
        """Embeddings in fp32; a prompt that several rows share is read once."""
        read = {key: {name: _fp32(v) for name, v in self.data.prompts.get(key).items()} for key in set(keys)}
        return [read[key] for key in keys]

    def _weight(self, sample: int) -> float:
        return 1.0 if self.weights is None else float(self.weights[sample])

    def _check_weights(self) -> None:
        if self.weights is None:
            return
        last = max(u.sample for u in self.units)
        if len(self.weights) <= last:
            raise DataError(f"{len(self.weights)} weights for {last + 1} records; give one for each record")
        if not all(np.isfinite(w) and w >= 0 for w in self.weights):
            raise DataError("a weight is negative or not finite; weights must be 0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    """One image of a batch before its tensors are read."""

    group: int
    role: int
    value: float
    latent: str
    prompt: str
    sample: int
    epoch: int


def unit_roles(kind: Kind, values: Sequence[float], ties: Ties) -> list[int]:
    """Role of each image of a comparison, in file order."""
    if kind == "labels":
        return [int(np.sign(v - 0.5)) for v in values]
    best = max(values)
    if min(values) == best:
        return [1, -1] if kind == "pair" and ties == "soft" else [0] * len(values)
    return [1 if v == best else -1 for v in values]


def _fp32(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def _move(value: Tensor | None, device: torch.device | str) -> Tensor | None:
    return None if value is None else send(value, device)
