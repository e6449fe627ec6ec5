"""What the objectives on rankings share: which rows form a list, without waiting for the device."""

from __future__ import annotations

import torch
from torch import Tensor

from diffalign.objectives.base import Denoised


def membership(batch: Denoised) -> Tensor:
    """(L, N) bool: whether row n belongs to list l; lists by ascending group, of any and different lengths.

    Raises:
        ValueError: there are fewer than two rows for each list.
    """
    count = count_groups(batch)
    if len(batch.group) < 2 * count:
        raise ValueError(
            f"{count} rankings have {len(batch.group)} images: one of them has a single image, which compares "
            "nothing; leave it out"
        )
    return _places(batch.group) == torch.arange(count, device=batch.group.device)[:, None]


def count_groups(batch: Denoised) -> int:
    """Number of comparison units; waits for the device where the batch does not say it."""
    return batch.groups if batch.groups is not None else len(torch.unique(batch.group))


def list_units(batch: Denoised, values: Tensor) -> Tensor:
    """(L,) mean of (N,) row values over the rows of each list."""
    rows = membership(batch).to(values.dtype)
    return rows @ values / rows.sum(1)


def _places(group: Tensor) -> Tensor:
    """(N,) place of each row's group among the groups in ascending order, from 0."""
    ascending, order = torch.sort(group, stable=True)
    steps = torch.zeros_like(ascending)
    steps[1:] = (ascending[1:] != ascending[:-1]).to(steps.dtype)
    return torch.empty_like(group).scatter_(0, order, steps.cumsum(0))
