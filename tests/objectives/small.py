"""Small batches by hand, and processes that share a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffalign.objectives import Denoised, Objective


def pairs_of(scores: Sequence[tuple[float, float]], beta: float = 1.0, **given: Tensor) -> Denoised:
    """Pairs whose sides have the scores beta s = (u_w, u_l); all reference errors are 0.5."""
    u = torch.tensor(scores, dtype=torch.float64).flatten()
    n = len(scores)
    return rows_of(u, [1, -1] * n, torch.arange(n).repeat_interleave(2), beta, **given)


def images_of(scores: Sequence[float], role: Sequence[int], beta: float = 1.0, **given: Tensor) -> Denoised:
    """Single images with the scores beta s."""
    u = torch.tensor(scores, dtype=torch.float64)
    return rows_of(u, role, torch.arange(len(u)), beta, **given)


def rows_of(u: Tensor, role: Sequence[int], group: Tensor, beta: float, **given: Tensor) -> Denoised:
    """Rows with the scores beta s = u."""
    return Denoised(
        error=(0.5 - 2 * u / beta).requires_grad_(True),
        ref_error=torch.full_like(u, 0.5),
        group=group,
        role=torch.tensor(role),
        t=torch.zeros(len(u)),
        **given,
    )


class Meeting:
    """Means over processes that run one after the other: each pass learns one more value they share."""

    def __init__(self, processes: int) -> None:
        """Nothing shared yet."""
        self.processes = processes
        self.known: list[Tensor] = []

    def together(self, objective: Objective, parts: Sequence[Denoised]) -> Tensor:
        """Losses of all parts, put together in order."""
        while True:
            said = [self._run(objective, part) for part in parts]
            if all(len(values) == len(self.known) for _, values in said):
                return torch.cat([loss for loss, _ in said])
            at = len(self.known)
            self.known.append(torch.stack([values[at] for _, values in said]).mean(0))

    def _run(self, objective: Objective, part: Denoised) -> tuple[Tensor, list[Tensor]]:
        values: list[Tensor] = []

        def reduce_mean(value: Tensor) -> Tensor:
            values.append(value)
            return self.known[len(values) - 1] if len(values) <= len(self.known) else value

        return objective.loss(part, reduce_mean, {})[0], values
