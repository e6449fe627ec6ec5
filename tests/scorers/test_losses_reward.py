"""Losses of HPSv3 against the published implementations, and by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from scorers.losses import pair_cross_entropy
from scorers.losses_reward import hpsv3_loss, margin_loss, regression_loss, soft_choice_loss, ties_loss
from tests.scorers.test_losses import golden

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def test_hpsv3_losses() -> None:
    data = golden("hpsv3_losses")
    a, b = data["rewards_A"], data["rewards_B"]
    first, z = torch.ones(len(a)), a[:, 0] - b[:, 0]
    noise = data["eps_seed123"].half()  # the published code rounds its noise
    found = hpsv3_loss(a, b, first, noise=noise).mean()
    torch.testing.assert_close(found, data["loss_uncertainty"], **CLOSE)
    torch.testing.assert_close(pair_cross_entropy(z, first).mean(), data["loss_bt"], **CLOSE)
    torch.testing.assert_close(ties_loss(z, first).mean(), data["loss_btt"], **CLOSE)
    torch.testing.assert_close(margin_loss(z, first).mean(), data["loss_constant_margin"], **CLOSE)
    torch.testing.assert_close(soft_choice_loss(z, first).sum(), data["loss_hpsv2"], **CLOSE)


@pytest.mark.parametrize("loss", [margin_loss, ties_loss, soft_choice_loss, regression_loss])
def test_losses_are_symmetric_and_pull_the_right_way(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    z = torch.randn(4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    label = torch.tensor([1.0, 0.0, 0.5, 1.0])
    torch.testing.assert_close(loss(z, label), loss(-z, 1 - label))
    (slope,) = torch.autograd.grad(loss(z, label).sum(), z)
    assert slope[0] < 0 < slope[1]  # the winner is pushed up, the loser down


def test_uncertainty_is_symmetric_and_pulls_the_right_way() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(3, 2, generator=generator) for _ in range(2))
    noise, label = torch.randn(3, 50, generator=generator), torch.tensor([1.0, 0.0, 0.5])
    mirrored = hpsv3_loss(b, a, 1 - label, noise=-noise)
    torch.testing.assert_close(hpsv3_loss(a, b, label, noise=noise), mirrored)
    a.requires_grad_()
    (grad,) = torch.autograd.grad(hpsv3_loss(a, b, label, noise=noise).sum(), a)
    assert grad[0, 0] < 0 < grad[1, 0]
    sure = torch.tensor([[1.0, -20.0]]), torch.tensor([[0.2, -20.0]])
    assert float(hpsv3_loss(*sure, torch.ones(1))) == pytest.approx(math.log(1 + math.exp(-0.8)), abs=1e-5)


def test_ties_model_is_a_distribution() -> None:
    z = torch.tensor([0.7])
    parts = [(-ties_loss(z, torch.tensor([label]))).exp() for label in (1.0, 0.5, 0.0)]
    assert float(sum(parts)) == pytest.approx(1, abs=1e-6)
