"""What objectives on rankings share: lists of any length in one batch, without waiting for the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffalign.objectives.base import Denoised


@dataclass(frozen=True, kw_only=True)
class Lists:
    """U lists with N rows in all, by ascending group."""

    unit: Tensor
    """(N,) int64 list of each row, 0..U-1."""
    count: int
    """U."""
    same: Tensor
    """(N, N) bool, whether two different rows are in the same list."""
    log_ratio: Tensor
    """(N,) s = -w(t) a / 2, the implicit log-ratio per unit of canonical beta."""

    def sum(self, values: Tensor) -> Tensor:
        """(U,) sums of (N,) row values, or of (N, N) values of pairs of rows, over each list."""
        rows = values if values.ndim == 1 else values.sum(1)
        return torch.where(_members(self.unit, self.count), rows, torch.zeros_like(rows)).sum(1)


def split_lists(batch: Denoised) -> Lists:
    """Cut a batch into its lists.

    Raises:
        ValueError: there are fewer than two rows for each list, so that one of them cannot be ranked.
    """
    unit = _dense(batch.group)
    count = batch.unit_count if batch.unit_count is not None else int(unit.max()) + 1
    if len(unit) < 2 * count:
        raise ValueError(f"{len(unit)} images in {count} rankings: a ranking of one image compares nothing")
    same = unit[:, None] == unit[None, :]
    return Lists(unit=unit, count=count, same=same.fill_diagonal_(False), log_ratio=-0.5 * batch.gap())


def list_units(batch: Denoised, values: Tensor) -> Tensor:
    """(U,) mean of (N,) row values over each list."""
    unit = _dense(batch.group)
    count = batch.unit_count if batch.unit_count is not None else int(unit.max()) + 1
    members = _members(unit, count)
    return torch.where(members, values, torch.zeros_like(values)).sum(1) / members.sum(1)


def _members(unit: Tensor, count: int) -> Tensor:
    """(U, N) bool, which rows are in which list; sums over it do not depend on the order of atomic adds."""
    return torch.arange(count, device=unit.device)[:, None] == unit[None, :]


def _dense(group: Tensor) -> Tensor:
    """(N,) place of each row's group among the ascending groups, without gaps."""
    ascending, order = group.sort(stable=True)
    steps = torch.cat([ascending.new_zeros(1), (ascending[1:] != ascending[:-1]).long()]).cumsum(0)
    return torch.empty_like(steps).scatter_(0, order, steps)
