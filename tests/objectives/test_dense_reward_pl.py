"""Plackett-Luce over discounted trajectories."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from diffalign.objectives.steps import Steps, build_online
from tests.objectives.rows import FOLDER


def batch_of(ratio: Tensor, rewards: Tensor, steps: Tensor) -> Steps:
    """All steps of (prompts, images, steps) log-ratios, in a shuffled order."""
    prompts, images, count = ratio.shape
    shuffle = torch.randperm(ratio.numel(), generator=torch.Generator().manual_seed(0))
    shuffle = torch.cat([torch.zeros(1).long(), shuffle[shuffle != 0]])  # the first prompt stays first

    def rows(value: Tensor) -> Tensor:
        return value.expand(prompts, images, count).flatten()[shuffle]

    return Steps(
        logp=ratio.flatten()[shuffle], ref_logp=torch.zeros(ratio.numel()).double(),
        group=rows(torch.arange(prompts).view(-1, 1, 1)), role=torch.zeros(ratio.numel()).long(),
        advantage=rows(rewards[:, :, None]), step=rows(steps.view(1, 1, -1)),
        image=rows(torch.arange(prompts * images).view(prompts, images, 1)),
    )  # fmt: skip


@pytest.mark.parametrize("which", ["sampled", "full"])
@pytest.mark.parametrize("known", [None, 2])
def test_published_loss(which: str, known: int | None) -> None:
    with np.load(FOLDER / "dense_reward_discount_pl.npz", allow_pickle=False) as file:
        d = {k: torch.as_tensor(file[k]) for k in file.files}
    ratio = d["log_ratio"].clone().requires_grad_(True)
    steps = d["step_idx"] if which == "sampled" else torch.arange(50)
    objective = build_online(
        "dense_reward_pl", temperature=float(d["temperature"]), gamma=float(d["gamma"]), clip=1e9,
        weighting="uniform" if which == "sampled" else "discount",
    )  # fmt: skip
    batch = replace(batch_of(ratio[:, :, steps], d["rewards"], steps), unit_count=known)
    loss, metrics = objective.loss(batch)
    assert loss.shape == metrics["accuracy"].shape == (2,)
    torch.testing.assert_close(loss.mean(), d[f"loss_{which}"], rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(loss.mean(), ratio)
    torch.testing.assert_close(gradient, d[f"grad_{which}"], rtol=1e-5, atol=1e-9)


def test_two_images_are_a_pair_and_clipped_steps_have_no_gradient() -> None:
    ratio = torch.tensor([[[0.05, 0.5], [0.01, -0.02]]], dtype=torch.float64, requires_grad=True)
    batch = batch_of(ratio, torch.tensor([[2.0, 1.0]]), torch.arange(2))
    loss, metrics = build_online("dense_reward_pl", temperature=2.0, clip=0.1).loss(batch)
    z = torch.tensor(2 * ((0.05 + 0.1) / 2 - (0.01 - 0.02) / 2), dtype=torch.float64)
    torch.testing.assert_close(loss, torch.nn.functional.softplus(-z)[None])
    (gradient,) = torch.autograd.grad(loss.sum(), ratio)
    assert gradient[0, 0, 1] == 0
    assert gradient[0, 0, 0] < 0 < gradient[0, 1].min()
    assert metrics["accuracy"].tolist() == [1.0]
    assert metrics["clipped"].tolist() == [0.25]


def test_equal_rewards_share_a_place() -> None:
    batch = batch_of(torch.tensor([[[0.3], [-0.3]]]).double(), torch.ones(1, 2), torch.arange(1))
    loss = build_online("dense_reward_pl", temperature=1.0, clip=1.0).loss(batch)[0]
    tie = 0.5 * sum(torch.nn.functional.softplus(torch.tensor(s * 0.6)) for s in (1, -1))
    assert float(loss) == pytest.approx(float(tie))
