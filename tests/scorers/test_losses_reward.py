"""Losses of ImageReward and HPSv3 against the published implementations, and by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from scorers.losses_reward import (
    hpsv3_closed_loss,
    hpsv3_loss,
    imagereward_loss,
    margin_loss,
    ordered_pairs,
    soft_choice_loss,
    ties_loss,
)
from tests.scorers.test_losses import golden

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def test_imagereward_loss_and_gradient() -> None:
    data = golden("imagereward_loss")
    rewards = data["reward_better_worse"].clone().requires_grad_()
    loss = imagereward_loss(rewards[:, 0], rewards[:, 1], torch.ones(len(rewards)))
    loss.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(loss, data["loss"], **CLOSE)
    torch.testing.assert_close(rewards.grad, data["grad"], **CLOSE)


def test_hpsv3_losses() -> None:
    data = golden("hpsv3_losses")
    a, b = data["rewards_A"], data["rewards_B"]
    first, s, t = torch.ones(len(a)), a[:, 0], b[:, 0]
    noise = data["eps_seed123"].half()  # the published code rounds its noise
    torch.testing.assert_close(hpsv3_loss(a, b, first, noise=noise), data["loss_uncertainty"], **CLOSE)
    torch.testing.assert_close(imagereward_loss(s, t, first), data["loss_bt"], **CLOSE)
    torch.testing.assert_close(ties_loss(s, t, first), data["loss_btt"], **CLOSE)
    torch.testing.assert_close(margin_loss(s, t, first), data["loss_constant_margin"], **CLOSE)
    torch.testing.assert_close(soft_choice_loss(s, t, first), data["loss_hpsv2"], **CLOSE)


@pytest.mark.parametrize(
    "loss", [imagereward_loss, margin_loss, ties_loss, soft_choice_loss, hpsv3_loss, hpsv3_closed_loss]
)
def test_losses_are_symmetric_and_pull_the_right_way(loss: object) -> None:
    generator = torch.Generator().manual_seed(0)
    wide = loss in (hpsv3_loss, hpsv3_closed_loss)
    a, b = (torch.randn(4, 2, generator=generator) for _ in range(2))
    a, b = (a, b) if wide else (a[:, 0], b[:, 0])
    label = torch.tensor([1.0, 0.0, 0.5, 1.0])
    options = {"noise": torch.randn(4, 50, generator=generator)} if loss is hpsv3_loss else {}
    mirrored = {"noise": -options["noise"]} if options else {}
    assert callable(loss)
    torch.testing.assert_close(loss(a, b, label, **options), loss(b, a, 1 - label, **mirrored))
    a.requires_grad_()
    (grad,) = torch.autograd.grad(loss(a, b, label, **options), a)
    slope = grad[:, 0] if wide else grad
    assert slope[0] < 0 < slope[1]  # the winner is pushed up, the loser down


def test_ties_model_is_a_distribution() -> None:
    s, t = torch.tensor([0.3]), torch.tensor([-0.4])
    parts = [(-ties_loss(s, t, torch.tensor([label]))).exp() for label in (1.0, 0.5, 0.0)]
    assert float(sum(parts)) == pytest.approx(1, abs=1e-6)


def test_closed_form_is_near_the_drawn_loss_and_exact_without_uncertainty() -> None:
    a, b = torch.tensor([[1.0, -0.2]]), torch.tensor([[0.2, -0.4]])
    drawn = hpsv3_loss(a, b, torch.ones(1), draws=200_000, generator=torch.Generator().manual_seed(1))
    # -log of the mean and the mean of -log differ: the closed form is the smaller
    closed = hpsv3_closed_loss(a, b, torch.ones(1))
    assert closed < drawn < closed + 0.2
    sure = hpsv3_closed_loss(torch.tensor([[1.0, -20]]), torch.tensor([[0.2, -20.0]]), torch.ones(1))
    assert float(sure) == pytest.approx(math.log(1 + math.exp(-0.8)), abs=1e-6)


def test_pairs_of_a_ranking_leave_ties_out() -> None:
    assert ordered_pairs([2, 1, 2]).tolist() == [[1, 0], [1, 2]]
    none: Tensor = ordered_pairs([1, 1])
    assert none.shape == (0, 2)
