"""MaPO: golden numbers, the link function at both ends, soft labels."""

from __future__ import annotations

import math

import pytest
import torch

from diffalign.objectives import Denoised, build
from diffalign.objectives.mapo import log_link
from tests.objectives.rows import PRECISIONS, check_golden, golden


def pair(error: list[float], dtype: torch.dtype = torch.float64, soft: float | None = None) -> Denoised:
    return Denoised(
        error=torch.tensor(error, dtype=dtype, requires_grad=True),
        ref_error=None,
        group=torch.tensor([0, 0]),
        role=torch.tensor([1, -1]),
        t=torch.zeros(2),
        soft=None if soft is None else torch.tensor([soft, 1 - soft], dtype=dtype),
    )


@pytest.mark.parametrize(("dtype", "rtol"), PRECISIONS)
def test_golden(dtype: torch.dtype, rtol: float) -> None:
    metrics = check_golden(build("mapo"), "mapo_eps", dtype, rtol)
    ratio = golden("mapo_eps")["ratio_losses"]  # of the code: beta log sigma(margin)
    torch.testing.assert_close(-0.1 * metrics["ratio_loss"].double(), ratio, rtol=rtol, atol=0)


@pytest.mark.parametrize("u", [1e-12, 1e-6, 1e-3, 0.05, 0.199999, 0.200001, 1.0, 20.0])
def test_the_link_is_right_where_the_plain_formula_is(u: float) -> None:
    x = torch.tensor(u, dtype=torch.float64, requires_grad=True)
    value = log_link(x)
    if u > 1e-3:
        assert value.item() == pytest.approx(math.log(u / math.expm1(u)), rel=1e-9, abs=1e-15)
    slope = torch.autograd.grad(value, x)[0].item()
    expected = 1 / u - math.exp(u) / math.expm1(u) if u > 0.01 else -0.5 - u / 12
    assert slope == pytest.approx(expected, rel=1e-9)


def test_the_two_branches_meet() -> None:
    u = torch.tensor([0.2 - 1e-9, 0.2], dtype=torch.float64)
    low, high = log_link(u)
    assert abs((low - high).item() - 0.5 * 1e-9) < 1e-10


@pytest.mark.parametrize("form", ["code", "v2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("error", [[0.0, 0.0], [1e6, 0.0], [0.0, 1e6], [1e6, 1e6]])
def test_finite_at_extremes(error: list[float], dtype: torch.dtype, form: str) -> None:
    batch = pair(error, dtype)
    loss = build("mapo", form=form).loss(batch)[0].sum()
    assert torch.isfinite(loss)
    assert torch.isfinite(torch.autograd.grad(loss, batch.error)[0]).all()


def test_value_and_gradient_at_zero() -> None:
    batch = pair([0.0, 0.0])
    loss, metrics = build("mapo").loss(batch)
    assert loss.item() == pytest.approx(0.1 * math.log(2))
    assert metrics["win_score"].item() == 1
    # d/de_w: 1 - beta sigma(0) T phi'(0) s, with phi'(0) = -1/2
    assert torch.autograd.grad(loss.sum(), batch.error)[0].tolist() == pytest.approx([1 + 12.5, -12.5])


def test_small_errors_keep_their_digits_in_fp32() -> None:
    wide = build("mapo").loss(pair([1.0e-4, 1.01e-4]))[1]["margin"].item()
    narrow = build("mapo").loss(pair([1.0e-4, 1.01e-4], torch.float32))[1]["margin"].item()
    assert narrow == pytest.approx(
        wide, rel=1e-3
    )  # 1000 (phi - phi) of rounded phi would be off by a quarter


def test_small_errors_are_dpo_without_reference_at_beta_500() -> None:
    margin = build("mapo").loss(pair([0.0010, 0.0013]))[1]["margin"].item()
    assert margin == pytest.approx(-250 * (0.0010 - 0.0013), rel=1e-3)


def test_v2_by_hand() -> None:
    loss = build("mapo", form="v2", beta=128.0).loss(pair([0.1, 0.2]))[0].item()
    win, lose = ((u / math.expm1(u)) ** 128 for u in (0.05, 0.1))
    assert loss == pytest.approx(0.1 + math.log1p(math.exp(-(win - lose))) / 128)


@pytest.mark.parametrize("form", ["code", "v2"])
def test_soft_labels_mix_both_directions(form: str) -> None:
    one = build("mapo", form=form).loss(pair([0.1, 0.2]))[0]
    other = build("mapo", form=form).loss(pair([0.2, 0.1]))[0]
    mixed = build("mapo", form=form).loss(pair([0.1, 0.2], soft=0.7))[0]
    torch.testing.assert_close(mixed, 0.7 * one + 0.3 * other)


@pytest.mark.parametrize("option", ["beta", "steps", "scale"])
def test_options_are_checked(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} is 0.0; it must be above 0"):
        build("mapo", **{option: 0.0})


def test_no_reference() -> None:
    assert not build("mapo").needs_reference
    assert not build("mapo").coupled
