"""Per-step figures: means over the step's comparison units, also by part of the time axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

BINS = 5
"""Parts of the time axis for which the gaps are shown apart (t0 is the cleanest)."""

BINNED = ("win_gap", "lose_gap")


class StepFigures:
    """Sums over the parts of one step; everything stays on the device."""

    def __init__(self) -> None:
        """Start at zero."""
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}

    def add(self, name: str, values: Tensor, where: Tensor | None = None) -> None:
        """Take in (U,) values, of which only those at True in ``where`` count."""
        chosen = torch.ones_like(values) if where is None else where.to(values.dtype)
        self.sums[name] = self.sums.get(name, 0) + (values.detach() * chosen).sum()
        self.counts[name] = self.counts.get(name, 0) + chosen.sum()

    def add_all(self, figures: Mapping[str, Tensor], share: Tensor, where: Tensor | None = None) -> None:
        """Take in an objective's (U,) figures, NaN where a unit has none.

        Args:
            figures: by name.
            share: (U,) each unit's place in time, 0 to 1.
            where: (U,) bool, units that count.
        """
        part = (share * BINS).long().clamp(0, BINS - 1)
        for name, values in figures.items():
            there = ~values.isnan() if where is None else where & ~values.isnan()
            self.add(name, values.nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf), there)
            if name in BINNED:
                for i in range(BINS):
                    self.add(f"{name}_t{i}", values.nan_to_num(), there & (part == i))

    def means(self, reduce_sum: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Scalar means over all processes; a part without units is NaN."""
        both = torch.stack([*self.sums.values(), *self.counts.values()])
        total, count = reduce_sum(both).chunk(2)
        return dict(zip(self.sums, (total / count).unbind(), strict=True))
