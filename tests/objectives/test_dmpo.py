"""DMPO: golden numbers, where its minimum is, extremes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from diffalign.objectives import Denoised, build
from tests.objectives.rows import PRECISIONS, check_golden, random_rows


def pair(error: list[float]) -> Denoised:
    return Denoised(
        error=torch.tensor(error, dtype=torch.float64, requires_grad=True),
        ref_error=torch.zeros(2, dtype=torch.float64),
        group=torch.tensor([0, 0]),
        role=torch.tensor([1, -1]),
        t=torch.zeros(2),
    )


@pytest.mark.parametrize(("dtype", "rtol"), PRECISIONS)
def test_golden(dtype: torch.dtype, rtol: float) -> None:
    check_golden(build("dmpo", beta=2000.0, alpha=0.01), "dmpo", dtype, rtol)


def test_the_minimum_is_at_the_label() -> None:
    z = math.log(0.9 / 0.1)
    batch = pair([0.0, z])  # beta 2: z is the loser's error minus the winner's
    loss = build("dmpo", beta=2.0, alpha=0.1).loss(batch)[0]
    assert loss.item() == pytest.approx(0, abs=1e-12)
    gradient = torch.autograd.grad(loss.sum(), batch.error)[0]
    assert gradient.abs().max() < 1e-12
    beyond = pair([0.0, z + 1])
    pull = torch.autograd.grad(build("dmpo", beta=2.0, alpha=0.1).loss(beyond)[0].sum(), beyond.error)[0]
    assert pull[1] > 0, "beyond the label's own certainty the loser is pulled back"


def test_value_at_the_reference() -> None:
    loss = build("dmpo", alpha=0.25).loss(pair([0.0, 0.0]))[0].item()
    assert loss == pytest.approx(0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))


@pytest.mark.parametrize("error", [[1e6, 0.0], [0.0, 1e6]])
def test_finite_at_extremes(error: list[float]) -> None:
    batch = pair(error)
    loss = build("dmpo").loss(batch)[0].sum()
    assert torch.isfinite(loss)
    assert torch.isfinite(torch.autograd.grad(loss, batch.error)[0]).all()


def test_soft_labels_mix_both_directions() -> None:
    batch, objective = random_rows(3), build("dmpo")
    one, other = objective.loss(batch)[0], objective.loss(replace(batch, role=-batch.role))[0]
    soft = torch.tensor([0.7] * 3 + [0.3] * 3, dtype=torch.float64)
    torch.testing.assert_close(objective.loss(replace(batch, soft=soft))[0], 0.7 * one + 0.3 * other)


@pytest.mark.parametrize("alpha", [0.0, 0.5, -1.0])
def test_options_are_checked(alpha: float) -> None:
    with pytest.raises(ValueError, match=r"alpha is .* above 0 and below 0\.5"):
        build("dmpo", alpha=alpha)
