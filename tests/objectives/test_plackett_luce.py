"""Plackett-Luce by hand, its limit at two images, ties, and lists of different lengths."""

from __future__ import annotations

import math

import pytest
import torch

from diffalign.objectives import Denoised, build
from tests.objectives.small import pairs_of, rows_of


def ranking(u: list[float], score: list[float], lengths: list[int] | None = None) -> Denoised:
    group = torch.arange(len(lengths or [1])).repeat_interleave(torch.tensor(lengths or [len(u)]))
    scores = torch.tensor(score, dtype=torch.float64)
    return rows_of(torch.tensor(u, dtype=torch.float64), [0] * len(u), group, 1.0, score=scores)


def loss_of(batch: Denoised) -> torch.Tensor:
    return build("plackett_luce", beta=1.0).loss(batch)[0]


def lse(*u: float) -> float:
    return math.log(sum(map(math.exp, u)))


def test_value_by_hand() -> None:
    loss = loss_of(ranking([0.3, -0.2, 0.5], [2.0, 9.0, 4.0]))  # order: -0.2, 0.5, 0.3
    assert loss.tolist() == pytest.approx([lse(-0.2, 0.5, 0.3) + 0.2 + lse(0.5, 0.3) - 0.5])


def test_at_two_images_it_is_dpo() -> None:
    for role, score in (([1, -1], [2.0, 1.0]), ([-1, 1], [1.0, 2.0]), ([0, 0], [1.0, 1.0])):
        pair = pairs_of([(0.7, -0.4)])
        pair.role = torch.tensor(role)
        pair.score = torch.tensor(score)
        losses = [build(name, beta=3.0).loss(pair)[0] for name in ("dpo", "plackett_luce")]
        torch.testing.assert_close(*losses)
        gradients = [torch.autograd.grad(loss.sum(), pair.error)[0] for loss in losses]
        torch.testing.assert_close(*gradients)


def test_ties_share_a_place() -> None:
    loss = loss_of(ranking([0.3, -0.2, 0.5], [1.0, 1.0, 0.0]))
    assert loss.tolist() == pytest.approx([lse(0.3, -0.2, 0.5) - 0.05])
    other = loss_of(ranking([-0.2, 0.3, 0.5], [1.0, 1.0, 0.0]))
    torch.testing.assert_close(loss, other)


def test_lists_may_differ_in_length() -> None:
    u, score = [0.3, -0.2, 0.5, 0.1, 0.9], [3.0, 2.0, 1.0, 1.0, 2.0]
    batch = ranking(u, score, [3, 2])
    both = loss_of(batch)
    torch.testing.assert_close(
        both, torch.cat([loss_of(ranking(u[:3], score[:3])), loss_of(ranking(u[3:], score[3:]))])
    )
    batch.unit_count = 2
    torch.testing.assert_close(loss_of(batch), both)
    weight = torch.tensor([1.0, 1.0, 1.0, 3.0, 3.0])
    assert build("plackett_luce").units(batch, weight).tolist() == [1.0, 3.0]


def test_metrics() -> None:
    metrics = build("plackett_luce", beta=1.0).loss(ranking([0.3, -0.2, 0.5], [3.0, 2.0, 1.0]))[1]
    assert metrics["accuracy"].tolist() == pytest.approx([1 / 3])
    assert metrics["margin"].tolist() == pytest.approx([(0.5 - 0.2 - 0.7) / 3])


def test_faults_are_named() -> None:
    batch = ranking([0.3, -0.2], [1.0, 2.0], [1, 1])
    with pytest.raises(ValueError, match="a ranking of one image compares nothing"):
        loss_of(batch)
    batch.score = None
    with pytest.raises(ValueError, match="plackett_luce needs the scores"):
        loss_of(batch)
    with pytest.raises(ValueError, match=r"plackett_luce\.beta is -1\.0; it must be above 0"):
        build("plackett_luce", beta=-1.0)
