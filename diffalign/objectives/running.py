"""Running statistics of objectives: equal on all processes, kept in the checkpoint, never waited for."""

from __future__ import annotations

import torch
from torch import Tensor

from diffalign.objectives.base import ReduceMean, State


def mean_over_all(values: Tensor, where: Tensor, reduce_mean: ReduceMean) -> tuple[Tensor, Tensor]:
    """Means of (N,) values over the rows of all processes, weighted by (..., N) ``where``.

    Returns:
        The (...) means, 0 where all weights are, and the (...) sums of weights per process. Neither has a
        gradient.
    """
    weight = where.to(values.dtype)
    total, count = reduce_mean(torch.stack([(values * weight).sum(-1), weight.sum(-1)]).detach()).unbind()
    return total / torch.where(count > 0, count, torch.ones_like(count)), count


def running_mean(
    values: Tensor, where: Tensor, name: str, decay: float, reduce_mean: ReduceMean, state: State | None
) -> Tensor:
    """Scalar exponential mean of the batch means of (N,) values, this batch included; no gradient.

    Rows count by their (N,) weights ``where``; a batch without any is passed over.

    It starts at the first batch mean that is not 0 (a fresh adapter gives exact zeros, which would hold the
    mean down for long). Without ``state`` it is this batch's mean.
    """
    now, count = mean_over_all(values, where, reduce_mean)
    if state is None:
        return now
    old = state.get(name, torch.zeros_like(now)).to(now)
    moved = torch.where(count > 0, decay * old + (1 - decay) * now, old)
    state[name] = torch.where(old == 0, now, moved)
    return state[name]
