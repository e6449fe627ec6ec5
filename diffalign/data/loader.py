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
from diffalign.data.order import Order, class_balanced, easiest_first, shuffled
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
    """(N,) fp32 scores: of a ranking its values, else what the records have as ``score``, else None."""
    weight: Tensor
    """(N,) fp32 weight of the row's comparison."""
    sizes: Tensor
    """(N, 6) int64: original height, width, crop top, left, target height, width."""
    sample: Tensor
    """(N,) int64: position of the record in the list that the cache was made from."""
    epoch: Tensor
    """(N,) int64: another number whenever the record comes again; with ``sample`` it seeds a row's draws."""
    margin: Tensor | None = None
    """(N,) fp32 margin asked of the row's pair, 0 where none is; None where no record has one."""
    region: Tensor | None = None
    """(N, 1, h, w) fp32 weights of the places of the latent, 0 or more, 1 where a record marks nothing; None
    where no record does. The error is sum(region * e) / sum(region) per row."""
    other_cond: dict[str, Tensor] | None = None
    """Collated embeddings of another comparison's prompt for each row; None unless ``other_captions``."""

    contents: tuple[str, ...] = ()
    """Per row a key of its latents, prompt and region, for what is kept of it from run to run."""

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        given = {name: v for name, v in vars(self).items() if name != "contents"}
        moved: dict[str, Any] = {name: _move(v, device) for name, v in given.items()}
        return Batch(contents=self.contents, **moved)


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
    liked_share: float | None = None
    """Of likes and dislikes: draw a like with this probability (KTO's gamma, 0.8 there); None takes each
    image once an epoch."""
    curriculum: int = 0
    """Easiest first: the first epoch comes in so many stages of falling score gap; 0 shuffles it too."""
    other_captions: bool = False
    """Bring the caption of the next comparison that has another one to each row (KTO's mismatched KL)."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.batch < 1 or self.seed < 0:
            raise DataError(f"batch is {self.batch} and seed {self.seed}; they must be at least 1 and 0")
        if not 0 <= self.prompt_dropout <= 1:
            raise DataError(f"prompt_dropout is {self.prompt_dropout}; it must be in [0, 1]")
        if self.ties not in ("keep", "drop", "soft"):
            raise DataError(f"ties is {self.ties!r}; it must be keep, drop or soft")
        if self.liked_share is not None and not 0 <= self.liked_share <= 1:
            raise DataError(f"liked_share is {self.liked_share}; it must be in [0, 1], for example 0.8")
        if self.curriculum < 0:
            raise DataError(f"curriculum is {self.curriculum}; it must be a number of stages, or 0 for none")
        if self.curriculum and self.liked_share is not None:
            raise DataError("curriculum orders pairs and rankings, liked_share draws likes: set one of them")


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
        DataError: fewer units per step than processes, nothing left without ties, a weight that is missing,
            negative or not finite, scores that only some records have, or data that an option cannot use.
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
        self._has = {name: self._any(name) for name in ("margin", "score", "regions")}
        self._orders: dict[int, Order] = {}
        self._check_options()
        self.position = 0
        if self.options.other_captions:
            self._caption_after(0)  # refuses data of one prompt

    @property
    def epoch(self) -> int:
        """Epoch of the next unit."""
        return self.position // len(self.units)

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches from the present position on, without end."""
        while True:
            places = self.next_places()
            others = self.next_captions() if self.options.other_captions else None
            # Moved before the batch is handed out: a state saved while it is worked on points behind it.
            self.position += self.options.batch
            yield self.assemble(places, others)

    def next_places(self) -> list[tuple[int, Unit]]:
        """(visit, unit) of this process in the next step; the visit is the epoch, or another number where a
        unit comes several times in one.
        """
        return [self._place(i) for i in self._mine()]

    def next_captions(self) -> list[str]:
        """For each unit of this process in the next step the key of another caption: that of the first unit
        behind it in the stream that has another one. So it does not depend on batch or processes.
        """
        return [self._caption_after(i) for i in self._mine()]

    def assemble(self, places: Sequence[tuple[int, Unit]], others: Sequence[str] | None = None) -> Batch:
        """Read the rows of some units and stack them; ``others`` are the units' other captions."""
        rows = [row for number, (visit, unit) in enumerate(places) for row in self._rows(number, visit, unit)]
        latents = [self.data.latents.get(row.latent) for row in rows]
        other = None if others is None else self.collate(self._conditions([others[r.group] for r in rows]))
        return Batch(
            mean=torch.stack([x["mean"].float() for x in latents]),
            logvar=torch.stack([x["logvar"].float() for x in latents]),
            cond=self.collate(self._conditions([row.prompt for row in rows])),
            group=torch.tensor([row.group for row in rows]),
            role=torch.tensor([row.role for row in rows]),
            soft=_column([row.soft for row in rows]) if self.data.kind == "pair" else None,
            score=_column([row.score for row in rows]) if self._scored else None,
            weight=_column([row.weight for row in rows]),
            sizes=torch.stack([x["sizes"] for x in latents]),
            sample=torch.tensor([row.sample for row in rows]),
            epoch=torch.tensor([row.visit for row in rows]),
            margin=_column([row.margin for row in rows]) if self._has["margin"] else None,
            region=self._regions(rows, latents) if self._has["regions"] else None,
            other_cond=other,
            contents=tuple(f"{row.latent}/{row.region}/{row.prompt}" for row in rows),
        )

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, int | str]:
        """Position in the stream, and what it is a position in."""
        return {
            "position": self.position,
            "seed": self.options.seed,
            "units": len(self.units),
            "data": self._fingerprint(),
            "order": self._order_name(),
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
        if state.get("order", "shuffled") != mine["order"]:
            raise DataError(
                f"cannot resume: the checkpoint is of a stream that was {state.get('order')}, this run's is "
                f"{mine['order']}; use the same liked_share and curriculum"
            )
        self.position = int(state["position"])

    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for unit in self.units:
            extras = (unit.margin, unit.weight, unit.soft, unit.score, unit.regions)
            own = (unit.sample, unit.values, unit.latents, unit.prompts)
            digest.update(repr(own + (extras if extras != (None, 1.0, None, None, None) else ())).encode())
        return digest.hexdigest()

    def _order_name(self) -> str:
        if self.options.liked_share is not None:
            return f"drawn with liked_share {self.options.liked_share:g}"
        return f"in {self.options.curriculum} stages first" if self.options.curriculum else "shuffled"

    # ------------------------------------------------------------------ rows

    def _mine(self) -> range:
        """Indices in the stream of this process's units in the next step."""
        start, size = self.position, self.options.batch
        return range(start + self.rank * size // self.world, start + (self.rank + 1) * size // self.world)

    def _place(self, i: int) -> tuple[int, Unit]:
        """(visit, unit) at index i of the stream."""
        epoch, place = divmod(i, len(self.units))
        if epoch not in self._orders:
            # Two are kept: the captions of a batch may reach into the next epoch.
            self._orders = {k: v for k, v in self._orders.items() if k == epoch - 1}
            self._orders[epoch] = self._epoch_order(epoch)
        order, repeats = self._orders[epoch]
        visit = epoch if self.options.liked_share is None else epoch * len(self.units) + int(repeats[place])
        return visit, self.units[int(order[place])]

    def _epoch_order(self, epoch: int) -> Order:
        rng, n = np.random.default_rng([self.options.seed, epoch]), len(self.units)
        if self.options.liked_share is not None:
            liked = [unit.values[0] > 0.5 for unit in self.units]
            return class_balanced(liked, self.options.liked_share, n, rng)
        if self.options.curriculum and epoch == 0:
            return easiest_first([unit.gap for unit in self.units], self.options.curriculum, rng)
        return shuffled(n, rng)

    def _caption_after(self, i: int) -> str:
        own = self._place(i)[1].prompts
        found = (self._place(j)[1].prompts[0] for j in range(i + 1, i + 1 + 2 * len(self.units)))
        other = next((caption for caption in found if caption not in own), None)
        if other is None:
            raise DataError("other_captions needs another caption for each comparison, and one has none")
        return other

    def _draw(self, epoch: int, unit: Unit, tag: int) -> float:
        """Uniform in [0, 1); depends on seed, epoch and sample alone, so not on who loads it."""
        return float(np.random.default_rng([self.options.seed, epoch, unit.sample, tag]).random())

    def labelled(self, visit: int, unit: Unit) -> Unit:
        """The unit as it is judged at one of its visits."""
        return unit

    def _rows(self, group: int, visit: int, unit: Unit) -> list[_Row]:
        unit = self.labelled(visit, unit)
        dropped = self._draw(visit, unit, PROMPT) < self.options.prompt_dropout
        view = int(self._draw(visit, unit, VIEW) * len(unit.latents))
        latents = unit.latents[view]
        prompts = (self.data.empty_prompt,) * len(latents) if dropped else unit.prompts
        order = (
            (1, 0) if self.data.kind == "pair" and unit.values[1] > unit.values[0] else range(len(latents))
        )
        roles = unit_roles(self.data.kind, unit.values, self.options.ties)
        return [
            _Row(
                group=group,
                role=roles[i],
                soft=(unit.soft or unit.values)[i],
                score=(unit.score or unit.values)[i],
                margin=unit.margin or 0.0,
                weight=unit.weight * self._weight(unit.sample),
                latent=latents[i],
                region="" if unit.regions is None else unit.regions[view][i],
                prompt=prompts[i],
                sample=unit.sample,
                visit=visit,
            )
            for i in order
        ]

    def _regions(self, rows: Sequence[_Row], latents: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """(N, 1, h, w) weights of places; ones where a row marks none."""
        whole = torch.ones(1, *latents[0]["mean"].shape[-2:])
        return torch.stack([self.data.latents.get(r.region)["region"] if r.region else whole for r in rows])

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

    @property
    def _scored(self) -> bool:
        return self.data.kind == "ranking" or self._has["score"]

    def _any(self, name: str) -> bool:
        return any(getattr(unit, name) is not None for unit in self.units)

    def _check_options(self) -> None:
        """Check that the data have what the options use."""
        options, units = self.options, self.units
        if self._has["score"] and any(unit.score is None for unit in units):
            lacking = sum(unit.score is None for unit in units)
            raise DataError(f"{lacking} of {len(units)} comparisons have no score, the others do; score all")
        if options.liked_share is not None and self.data.kind != "labels":
            raise DataError(f"liked_share is for likes and dislikes, and the data hold {self.data.kind}s")
        if options.liked_share is not None:
            self._epoch_order(0)  # refuses a class that is missing
        if options.curriculum and len({unit.gap for unit in units}) == 1:
            raise DataError(
                "curriculum orders by score gap, and all comparisons have the same one; score the data "
                "(diffalign score --write) and set data.select.score, or leave curriculum out"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    """One image of a batch before its tensors are read."""

    group: int
    role: int
    soft: float
    score: float
    margin: float
    weight: float
    latent: str
    region: str
    prompt: str
    sample: int
    visit: int


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


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def _move(
    value: Tensor | dict[str, Tensor] | None, device: torch.device | str
) -> Tensor | dict[str, Tensor] | None:
    if isinstance(value, dict):
        return {name: send(tensor, device) for name, tensor in value.items()}
    return None if value is None else send(value, device)
