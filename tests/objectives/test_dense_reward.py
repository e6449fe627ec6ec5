"""The temporal discount: its weights on VP and flow, and what it does to the logit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from diffalign.objectives import build
from diffalign.objectives.dense_reward import DenseReward
from tests.objectives.rows import random_rows


def test_weights_by_hand() -> None:
    weight = DenseReward().discount(torch.tensor([999, 980, 979, 0]))
    every = sum(0.9**k for k in range(50))
    assert weight.tolist() == pytest.approx([50 / every, 50 / every, 0.9 * 50 / every, 0.9**49 * 50 / every])


def test_the_mean_over_uniform_t_is_one() -> None:
    assert DenseReward().discount(torch.arange(1000)).mean().item() == pytest.approx(1.0)
    sigma = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    assert DenseReward().discount(sigma).mean().item() == pytest.approx(1.0)


def test_flow_and_vp_agree() -> None:
    t = torch.tensor([3, 250, 510, 995])
    torch.testing.assert_close(DenseReward().discount((t + 0.5).double() / 1000), DenseReward().discount(t))
    assert torch.isfinite(DenseReward().discount(torch.tensor([0.0, 1.0]))).all()


def test_it_weighs_the_logit() -> None:
    t = torch.tensor([999, 0, 999, 0])
    batch = random_rows(2, t=t, t_weight=torch.full((4,), 0.5).double())
    plain = build("dpo").loss(replace(batch, t_weight=None))[1]["margin"]
    found = build("dense_reward").loss(batch)[1]["margin"]
    torch.testing.assert_close(found, 0.5 * DenseReward().discount(t)[:2] * plain)


def test_without_discount_it_is_dpo() -> None:
    batch = random_rows(2, t=torch.tensor([999, 0, 999, 0]))
    torch.testing.assert_close(build("dense_reward", gamma=1.0).loss(batch)[0], build("dpo").loss(batch)[0])


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match=r"gamma is 1\.1; it must be above 0 and at most 1"):
        build("dense_reward", gamma=1.1)
    with pytest.raises(ValueError, match="steps is 0; it must be above 0"):
        build("dense_reward", steps=0)
    with pytest.raises(ValueError, match="above 0"):
        build("dense_reward", beta=-1.0)
