"""Group weights: by hand, towards the worst served, and what they are on a problem with a known answer."""

from __future__ import annotations

import math

import pytest
import torch

from diffalign.personalize.robust import MaxMin, group_sums, unit_weights


def test_a_step_by_hand() -> None:
    rule = MaxMin(step=math.log(2), floor=0.0)
    q = rule.begin(3)
    sums, counts = group_sums(torch.tensor([1.0, 3.0, 1.0]), torch.tensor([0, 0, 1]), 3)
    assert sums.tolist() == [4.0, 1.0, 0.0]
    assert counts.tolist() == [2.0, 1.0, 0.0]
    found = rule.update(q, sums, counts)  # means 2 and 1: the first doubles against the second
    torch.testing.assert_close(found, torch.tensor([4 / 9, 2 / 9, 1 / 3], dtype=torch.float64))
    floored = MaxMin(floor=0.5).shares(found)
    torch.testing.assert_close(floored, 0.5 * found + 1 / 6)


def test_weights_make_a_mean_of_group_means() -> None:
    loss, group = torch.tensor([1.0, 3.0, 8.0]).double(), torch.tensor([0, 0, 1])
    _, counts = group_sums(loss, group, 2)
    weight = unit_weights(torch.tensor([0.25, 0.75]).double(), group, counts)
    assert float((weight * loss).sum() / weight.sum()) == pytest.approx(0.25 * 2 + 0.75 * 8)


def test_maxmin_serves_the_smaller_group_where_the_mean_does_not() -> None:
    """Nine people want x = 0 and one x = 1, losses (x - a)^2: the mean gives 0.1, MaxMin the middle."""
    group = torch.tensor([0] * 9 + [1])
    wish = group.double()
    rule, x = MaxMin(step=0.5, floor=0.0), torch.zeros((), dtype=torch.float64)
    q, seen = rule.begin(2), []
    for _ in range(400):
        loss = (x - wish).square()
        sums, counts = group_sums(loss, group, 2)
        q = rule.update(q, sums, counts)
        weight = unit_weights(rule.shares(q), group, counts)
        x = x - 0.1 * (weight * 2 * (x - wish)).sum() / weight.sum()
        seen.append(x)
    assert float(torch.stack(seen[200:]).mean()) == pytest.approx(0.5, abs=0.02)


def test_large_losses_do_not_overflow() -> None:
    rule = MaxMin(step=10.0)
    q = rule.update(rule.begin(2), torch.tensor([1e4, 2e4]), torch.tensor([1.0, 1.0]))
    assert q.tolist() == [0.0, 1.0]
    assert rule.shares(q)[0] == pytest.approx(0.05)


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match=r"step is 0 and floor 0\.1; step must be above 0"):
        MaxMin(step=0)
    with pytest.raises(ValueError, match="no groups"):
        MaxMin().begin(0)
