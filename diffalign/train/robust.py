"""Weights of groups of people in a training run, moved towards the worst served at every step (MaxMin)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from diffalign.data.loader import Batch
from diffalign.data.records import DataError, Record
from diffalign.personalize.robust import MaxMin, group_sums
from diffalign.train.conditions import first_rows
from diffalign.train.people import RobustConfig

Reduce = Callable[[Tensor], Tensor]


class GroupWeights:
    """Weighs the units of a step so that their mean is that of the groups' means, with a weight for each.

    Args:
        options: how weights move.
        of: (n,) int64 group of the record at each position, from 0.
        device: where losses are.
    """

    def __init__(self, options: MaxMin, of: Tensor, device: torch.device | str) -> None:
        """Equal weights."""
        self.options, self.of = options, of
        # Apple's GPU knows no float64
        self.device = torch.device("cpu" if torch.device(device).type == "mps" else device)
        self.count = int(of.max()) + 1
        self.q = options.begin(self.count).to(self.device)
        """(G,) weights without the floor: the state, alike on all processes."""
        self._sums = self._counts = torch.zeros_like(self.q)

    def weighed(self, parts: Sequence[Batch], reduce_sum: Reduce) -> list[Batch]:
        """This process's parts of a step, which are on the host, with their rows' weights times the groups'.

        Args:
            parts: of this process.
            reduce_sum: adds up over processes.
        """
        counts = torch.zeros(self.count, dtype=torch.float64)
        for batch in parts:
            first = first_rows(batch.group)  # a unit's rows have one weight and one group
            counts.index_add_(0, self.groups(batch)[first], batch.weight[first].double())
        every = reduce_sum(counts.to(self.device))
        self._sums = self._counts = torch.zeros_like(self.q)
        shares, total = self.options.shares(self.q).cpu(), every.cpu()
        return [replace(b, weight=self._weight(b, shares, total)) for b in parts]

    def _weight(self, batch: Batch, shares: Tensor, counts: Tensor) -> Tensor:
        factor = shares / torch.where(counts > 0, counts, 1.0)  # (G,)
        return (batch.weight * factor[self.groups(batch)]).to(batch.weight)

    def groups(self, batch: Batch) -> Tensor:
        """(N,) int64 group of each row, on the host."""
        return self.of[batch.sample.cpu()]

    def saw(self, loss: Tensor, weight: Tensor, group: Tensor) -> None:
        """Take in (U,) losses of a part with their units' weights and groups."""
        loss, weight, group = (x.detach().to(self.device) for x in (loss, weight, group))
        sums, _ = group_sums(loss * weight, group, self.count)
        counts, _ = group_sums(weight, group, self.count)
        self._sums, self._counts = self._sums + sums, self._counts + counts

    def step(self, reduce_sum: Reduce) -> dict[str, Tensor]:
        """Move the weights by the step's losses over all processes; scalar figures of the worst group.

        ``worst_group`` is its number in the order in which groups come in the data, ``worst_share`` its
        weight, ``worst_loss`` the largest mean loss of a group in this step.
        """
        sums, counts = reduce_sum(torch.stack([self._sums, self._counts])).unbind()
        seen = counts > 0
        means = torch.where(seen, sums / torch.where(seen, counts, 1.0), 0.0)
        self.q = self.options.update(self.q, means, seen.to(means))
        return {
            "worst_group": self.q.argmax().float(),
            "worst_share": self.options.shares(self.q).max().float(),
            "worst_loss": torch.where(seen, means, -torch.inf).max().float(),
        }


def make_group_weights(
    config: RobustConfig | None, records: Sequence[Record], device: torch.device | str
) -> GroupWeights | None:
    """Weights of the raters of the records, or of the groups that a file has them in; None without them.

    Raises:
        DataError: a record that does not say who judged, a rater whom the file lacks, or a single group.
        FileNotFoundError: no such file.
    """
    if config is None:
        return None
    named = [record.rater for record in records]
    nameless = sum(rater is None for rater in named)
    if nameless:
        raise DataError(f"{nameless} of {len(named)} records do not say who judged: leave people.robust out")
    groups = [rater or "" for rater in named] if config.groups is None else _read(Path(config.groups), named)
    numbers = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    if len(numbers) < 2:
        raise DataError("people.robust weighs groups against each other, and there is one: leave it out")
    of = torch.tensor([numbers[group] for group in groups])
    return GroupWeights(MaxMin(step=config.step, floor=config.floor), of, device)


def _read(file: Path, raters: Sequence[str | None]) -> list[str]:
    """Group of each rater by a JSON object."""
    if not file.is_file():
        raise FileNotFoundError(f"people.robust.groups: {file} is missing; write {{rater: group}} as JSON")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{file} is no JSON ({error}): write {{rater: group}}") from error
    if not isinstance(found, dict):
        raise DataError(f"{file} holds a {type(found).__name__}: write one object, {{rater: group}}")
    missing = sorted({str(r) for r in raters if r not in found})
    if missing:
        raise DataError(
            f"{file} has no group for {len(missing)} raters, {missing[0]!r} for one: name them all"
        )
    return [str(found[rater]) for rater in raters]
