"""Losses of HPSv2, ImageReward, PAL and GPM against published code; lists by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from scorers.losses import (
    choice_loss,
    hinge_loss,
    listwise_loss,
    pair_cross_entropy,
    rank_hinge,
    ranking_hinge,
)
from tests.scorers.test_losses import golden

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def padded(value: float, key: str, data: dict[str, Tensor]) -> Tensor:
    """Lists of 2, 3 and 4 as rows."""
    lengths = data["num_images"].tolist()
    parts = data[key].split(lengths)
    rows = [p[:, i] for i, p in enumerate(parts)] if parts[0].ndim == 2 else list(parts)
    return pad_sequence(rows, batch_first=True, padding_value=value)


def test_hpsv2_pair_loss_and_gradient() -> None:
    data = golden("hpsv2_losses")
    text = data["text"].clone().requires_grad_()
    first, second = data["image"].chunk(2)
    z = data["logit_scale"] * (text * (first - second)).sum(1)
    loss = pair_cross_entropy(z, data["labels"][:4]).sum()
    torch.testing.assert_close(loss, data["hps_loss"], **CLOSE)
    loss.backward()
    # the golden gradient is that of the scaled logits text @ image.T, of which the loss uses two diagonals
    wanted = data["hps_grad_text_logits"] @ data["image"]
    torch.testing.assert_close(text.grad / data["logit_scale"], wanted, **CLOSE)


def test_hps_choice_and_ranking_losses() -> None:
    data = golden("hpsv2_losses")
    there = torch.arange(4) < data["num_images"][:, None]
    logits = padded(-1.0, "pref_logits", data)
    chosen = torch.nn.functional.one_hot(data["pref_labels"], 4).float()
    torch.testing.assert_close(choice_loss(logits, chosen, there).mean(), data["pref_loss"], **CLOSE)
    assert bool((choice_loss(logits, chosen - 9 * ~there, there) == choice_loss(logits, chosen, there)).all())
    rank = padded(10, "rank_labels", data)
    found = rank_hinge(logits, rank, margin=float(data["rank_margin"]))
    torch.testing.assert_close(found.mean(), data["rank_loss"], **CLOSE)
    masked = rank_hinge(logits, rank, there)
    torch.testing.assert_close(masked, rank_hinge(logits - 99 * ~there, rank, there))
    values = -rank.float()  # the same order, said as people do: higher is better
    torch.testing.assert_close(ranking_hinge(logits, values, there), masked)
    torch.testing.assert_close(ranking_hinge(logits, values + 50 * ~there, there), masked)


def test_imagereward_loss_and_gradient() -> None:
    data = golden("imagereward_loss")
    rewards = data["reward_better_worse"].clone().requires_grad_()
    each = pair_cross_entropy(rewards[:, 0] - rewards[:, 1], torch.ones(6))
    torch.testing.assert_close(each, data["loss_list"], **CLOSE)
    torch.testing.assert_close(each.mean(), data["loss"], **CLOSE)
    each.mean().backward()
    torch.testing.assert_close(rewards.grad, data["grad"], **CLOSE)


def test_general_preference_losses() -> None:
    data = golden("gpm")
    for d in (2, 4, 6):
        each = pair_cross_entropy(data[f"d{d}_score"] / 0.1, torch.ones(5))
        torch.testing.assert_close(each.mean(), data[f"d{d}_loss_tau0.1"], **CLOSE)
    gap = (data["bt_chosen"] - data["bt_rejected"]) / 0.1
    torch.testing.assert_close(pair_cross_entropy(gap, torch.ones(5)).mean(), data["bt_loss_tau0.1"], **CLOSE)


def test_pal_losses() -> None:
    data = golden("pal_losses")
    label, logit = (data["y"] + 1) / 2, data["y_hat"]
    torch.testing.assert_close(hinge_loss(logit, label), data["hinge"], **CLOSE)
    torch.testing.assert_close(hinge_loss(logit, label, smooth=5.0), data["hinge_smooth_g5"], **CLOSE)
    torch.testing.assert_close(pair_cross_entropy(logit, label), data["logistic"], **CLOSE)
    gap = data["ce_logits"][:, 0] - data["ce_logits"][:, 1]
    torch.testing.assert_close(pair_cross_entropy(gap, 1.0 - data["ce_targets"]), data["ce"], **CLOSE)


def test_a_list_of_two_is_bradley_terry() -> None:
    scores = torch.tensor([[0.3, -0.5], [1.0, 2.0]])
    found = listwise_loss(scores, torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    torch.testing.assert_close(found, pair_cross_entropy(scores[:, 0] - scores[:, 1], torch.ones(2)))


def test_lists_by_hand() -> None:
    scores = torch.tensor([[2.0, 1.0, 0.0, 7.0]], requires_grad=True)
    mask = torch.tensor([[True, True, True, False]])
    first = -math.log(math.exp(2) / (math.exp(2) + math.exp(1) + 1))
    second = -math.log(math.exp(1) / (math.exp(1) + 1))
    strict = listwise_loss(scores, torch.tensor([[3.0, 2.0, 1.0, 9.0]]), mask)
    assert float(strict.detach()) == pytest.approx((first + second) / 2, abs=1e-6)
    tied = listwise_loss(scores, torch.tensor([[2.0, 2.0, 1.0, 9.0]]), mask)
    whole = math.log(math.exp(2) + math.exp(1) + 1)
    assert float(tied.detach()) == pytest.approx((whole - 2 + whole - 1) / 2, abs=1e-6)
    strict.sum().backward()
    assert scores.grad is not None
    assert bool(scores.grad.isfinite().all())
    assert scores.grad[0, 0] < 0 < scores.grad[0, 2]
    assert scores.grad[0, 3] == 0
    equal = torch.zeros(1, 3, requires_grad=True)
    loss = listwise_loss(equal, torch.ones(1, 3))
    assert float(loss.detach()) == 0
    loss.sum().backward()
    assert bool((equal.grad == 0).all())
