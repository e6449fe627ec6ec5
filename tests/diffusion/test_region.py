"""Errors of marked regions."""

from __future__ import annotations

import pytest
import torch

from diffalign.diffusion.region import region_error, to_grid


def test_a_constant_map_is_the_plain_mean() -> None:
    squared = torch.rand(3, 4, 8, 8, dtype=torch.float64)
    for value in (1.0, 0.25):
        found = region_error(squared, torch.full((3, 1, 8, 8), value))
        torch.testing.assert_close(found, squared.flatten(1).mean(1))


def test_only_the_region_counts_whatever_its_size() -> None:
    squared = torch.ones(1, 2, 2, 2)
    squared[0, :, 0, 0] = torch.tensor([3.0, 5.0])
    m = torch.zeros(1, 1, 2, 2)
    m[0, 0, 0, 0] = 0.5
    assert region_error(squared, m).tolist() == [4.0]
    m[0, 0, 1, 1] = 1.0
    assert region_error(squared, m).tolist() == pytest.approx([(0.5 * 8 + 1 * 2) / (2 * 1.5)])


def test_an_empty_map_is_zero_and_differentiable() -> None:
    squared = torch.ones(2, 1, 2, 2, requires_grad=True)
    m = torch.stack([torch.zeros(1, 2, 2), torch.ones(1, 2, 2)])
    error = region_error(squared, m)
    assert error.tolist() == [0.0, 1.0]
    gradient = torch.autograd.grad(error.sum(), squared)[0]
    assert gradient[0].abs().max() == 0
    assert gradient[1].sum() == 1


def test_the_grid_keeps_shares() -> None:
    mask = torch.zeros(1, 1, 4, 4)
    mask[0, 0, :2, :1] = 1
    assert to_grid(mask, 2, 2).flatten().tolist() == [0.5, 0, 0, 0]
    assert to_grid(mask, 2, 2, outside=0.2).flatten().tolist() == pytest.approx([0.6, 0.2, 0.2, 0.2])


def test_wrong_use_is_named() -> None:
    with pytest.raises(ValueError, match=r"\(1, 1, 4, 4\); it must be \(1, 3, 2, 2\)|must be \(1, 1, 2, 2\)"):
        region_error(torch.ones(1, 3, 2, 2), torch.ones(1, 1, 4, 4))
    with pytest.raises(ValueError, match="outside is 2"):
        to_grid(torch.ones(1, 1, 4, 4), 2, 2, outside=2)
