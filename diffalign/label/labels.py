"""From the scores of a data set to its labels, and to pairs by a rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from diffalign.data.derived import Derived
from diffalign.data.records import DataError, Record
from diffalign.data.split import normalise
from diffalign.label.formulas import (
    calibrated_reward,
    pareto_fronts,
    smpo_probability,
    win_fraction,
    within_sd,
)
from diffalign.label.options import LabelOptions
from diffalign.label.rules import Candidates, Rule
from diffalign.label.scoring import Scored

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Labels:
    """A scored data set with what all of its labels share."""

    scored: Scored
    names: tuple[str, ...]
    """Scorers; the first gives SmPO's probability."""
    options: LabelOptions
    unit: Array
    """(K,) each scorer's s.d. between images of a prompt."""
    low: float
    """SmPO's smallest score of the first scorer."""
    high: float
    """SmPO's largest."""

    @classmethod
    def of(cls, scored: Scored, names: Sequence[str], options: LabelOptions) -> Labels:
        """Measure what the labels need of the whole data set.

        Raises:
            DataError: a scorer that tells no images of a prompt apart.
        """
        groups = list(_by_prompt(scored).values())
        tables = [np.concatenate([_table(scored.records[i], names) for i in g], 1) for g in groups]
        first = np.concatenate([t[0] for t in tables])
        return cls(
            scored=scored,
            names=tuple(names),
            options=options,
            unit=within_sd(tables, names),
            low=float(first.min()) if options.low is None else options.low,
            high=float(first.max()) if options.high is None else options.high,
        )

    def records(self) -> list[Derived]:
        """Every record with its labels; rankings of equals are ranked by phi."""
        return [
            Derived(of=place, images=tuple(range(len(record.images))), record=self._whole(i, record))
            for i, (place, record) in enumerate(self._labelled())
        ]

    def pairs(self, rule: Rule) -> list[Derived]:
        """The pairs that a rule makes, each with its labels."""
        out = []
        for i, (place, record) in enumerate(self._labelled()):
            z = _table(record, self.names)
            z = (z - z.mean(1, keepdims=True)) / self.unit[:, None]
            f = self.scored.features[i] if self.scored.features else None
            for pair in rule(Candidates(prompt=record.prompt, z=z, features=f), self.options.rule):
                made = self._paired(
                    record.only(pair, "pair", (1.0, 0.0)), None if f is None else f[list(pair)]
                )
                out.append(Derived(of=place, images=pair, record=made))
        return out

    def _labelled(self) -> list[tuple[int, Record]]:
        """(place, record) with phi, calibrated and front."""
        rows: list[dict[str, tuple[float, ...]]] = [{} for _ in self.scored.records]
        alone = self.options.siblings == "record"
        groups = [[i] for i in range(len(rows))] if alone else list(_by_prompt(self.scored).values())
        for group in groups:
            for i, found in zip(group, self._compared(group), strict=True):
                rows[i] = found
        both = zip(self.scored.places, self.scored.records, rows, strict=True)
        return [(place, replace(r, judged=dict(r.judged) | row)) for place, r, row in both]

    def _compared(self, group: Sequence[int]) -> list[dict[str, tuple[float, ...]]]:
        """Labels of some records whose images are all compared; an image that comes twice counts once."""
        keys = [key for i in group for key in self.scored.keys[i]]
        if len(keys) == 1:
            raise DataError(
                f"{self.scored.records[group[0]].source or 'record'}: a ranking of one item; compare the "
                "images of a prompt with siblings=prompt, or leave the record out"
            )
        table = np.concatenate([_table(self.scored.records[i], self.names) for i in group], 1)
        _, first, back = np.unique(keys, return_index=True, return_inverse=True)
        found = {name: row[back] for name, row in self._formulas(table[:, first]).items()}
        ends = np.cumsum([len(self.scored.keys[i]) for i in group])[:-1]
        cut = {name: np.split(row, ends) for name, row in found.items()}
        return [{name: tuple(parts[k].tolist()) for name, parts in cut.items()} for k in range(len(group))]

    def _formulas(self, table: Array) -> dict[str, Array]:
        if table.shape[1] == 1:  # the same image twice: a tie
            return {"phi": np.array([0.5]), "calibrated": np.array([0.5]), "front": np.array([1.0])}
        unit = self.unit if self.options.calibration == "sd" else np.ones(len(table))
        return {
            "phi": win_fraction(table),
            "calibrated": calibrated_reward(table, unit),
            "front": pareto_fronts(table).astype(np.float64),
        }

    def _whole(self, i: int, record: Record) -> Record:
        if record.kind == "ranking" and record.undecided:
            return replace(record, values=record.judged["phi"])
        if record.kind != "pair":
            return record
        return self._paired(record, self.scored.features[i] if self.scored.features else None)

    def _paired(self, record: Record, features: Array | None) -> Record:
        """The pair with SmPO's probabilities and, where there are features, its distance."""
        r0, r1 = (np.asarray(v) for v in record.judged[self.names[0]])
        p = float(smpo_probability(r0, r1, self.low, self.high))
        judged = dict(record.judged) | {"smpo": (p, 1 - p)}
        if features is None:
            return replace(record, judged=judged)
        return replace(record, judged=judged, distance=float(np.linalg.norm(features[0] - features[1])))


def _table(record: Record, names: Sequence[str]) -> Array:
    """(K, n) scores."""
    return np.array([record.judged[name] for name in names], dtype=np.float64)


def _by_prompt(scored: Scored) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for i, record in enumerate(scored.records):
        groups.setdefault(normalise(record.prompt), []).append(i)
    return groups
