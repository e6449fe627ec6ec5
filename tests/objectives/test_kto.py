"""KTO by hand: what the shift is, batches of one kind, unknown labels, weights."""

from __future__ import annotations

import math

import pytest
import torch

from diffalign.objectives import Denoised, build
from tests.objectives.small import images_of


def sigma(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def run(batch: Denoised, **options: object) -> tuple[list[float], dict[str, list[float]]]:
    loss, metrics = build("kto", beta=1.0, **options).loss(batch)
    return loss.tolist(), {k: v.tolist() for k, v in metrics.items()}


def test_value_by_hand() -> None:
    """Scores 1, 0.5 liked and 0.3 disliked: their mean is 0.6."""
    loss, metrics = run(images_of([1.0, 0.5, 0.3], [1, 1, -1]))
    assert metrics["kl"] == pytest.approx([0.6] * 3)
    assert loss == pytest.approx([1 - sigma(0.4), 1 - sigma(-0.1), 1 - sigma(0.3)])
    assert metrics["accuracy"] == [1.0, 0.0, 1.0]


def test_the_batch_shift_is_at_least_zero() -> None:
    assert run(images_of([-1.0, -0.5], [1, -1]))[1]["kl"] == [0.0, 0.0]


def test_the_balanced_shift_weighs_the_kinds_alike() -> None:
    metrics = run(images_of([-1.0, -0.5, -0.3], [1, 1, -1]), kl="balanced")[1]
    assert metrics["kl"] == pytest.approx([(-0.75 - 0.3) / 2] * 3)


def test_the_mismatched_shift_is_of_other_captions() -> None:
    batch = images_of([1.0, 0.5], [1, -1])
    batch.extra = {"kl_error": torch.tensor([0.3, 0.5]), "kl_ref_error": torch.tensor([0.1, 0.1])}
    assert run(batch, kl="mismatched")[1]["kl"] == pytest.approx([-0.15] * 2)
    assert build("kto", kl="mismatched").needs == {"kl_error", "kl_ref_error"}
    assert build("kto").needs == frozenset()
    batch.extra = {}
    with pytest.raises(ValueError, match=r"kto\.kl is mismatched.*'kl_error'"):
        run(batch, kl="mismatched")


def test_the_shift_has_no_gradient() -> None:
    batch = images_of([0.7], [1])
    loss = build("kto", beta=1.0).loss(batch)[0].sum()
    assert torch.autograd.grad(loss, batch.error)[0].tolist() == pytest.approx([0.25 / 2])


@pytest.mark.parametrize("kl", ["batch", "balanced", "zero"])
@pytest.mark.parametrize("role", [1, -1])
def test_a_batch_of_one_kind_is_finite_and_named(role: int, kl: str) -> None:
    batch = images_of([0.4, 0.2], [role, role])
    loss, metrics = build("kto", beta=1.0, kl=kl).loss(batch)
    assert torch.autograd.grad(loss.sum(), batch.error)[0].isfinite().all()
    assert metrics["kl"].tolist() == pytest.approx([0.0 if kl == "zero" else 0.3] * 2)
    assert metrics["one_sided"].tolist() == [1.0, 1.0]
    assert metrics["likes"].tolist() == [float(role > 0)] * 2
    assert metrics["dislikes"].tolist() == [float(role < 0)] * 2
    assert metrics["lose_gap" if role > 0 else "win_gap"].isnan().all()


def test_figures_of_each_kind() -> None:
    metrics = run(images_of([1.0, 0.5], [1, -1]))[1]
    assert metrics["one_sided"] == [0.0, 0.0]
    assert metrics["score_like"][0] == 1.0
    assert math.isnan(metrics["score_like"][1])
    assert metrics["score_dislike"][1] == 0.5
    assert metrics["win_gap"][0] == pytest.approx(-2.0)
    assert metrics["error_win"][0] == pytest.approx(0.5 - 2.0)


def test_an_unknown_label_is_half_of_each() -> None:
    loss = run(images_of([0.4], [0]), kl="zero")[0]
    assert loss == pytest.approx([0.5 * (1 - sigma(0.4)) + 0.5 * (1 - sigma(-0.4))])
    soft = torch.tensor([0.9], dtype=torch.float64)
    loss = run(images_of([0.4], [1], soft=soft), kl="zero")[0]
    assert loss == pytest.approx([0.9 * (1 - sigma(0.4)) + 0.1 * (1 - sigma(-0.4))])


def test_weights() -> None:
    batch = images_of([0.4, 0.4], [1, -1])
    loss = run(batch, kl="zero", desirable_weight=2.0, undesirable_weight=0.5)[0]
    assert loss == pytest.approx([2 * (1 - sigma(0.4)), 0.5 * (1 - sigma(-0.4))])
    with pytest.raises(ValueError, match=r"kto\.undesirable_weight is -1\.0; it must be at least 0"):
        build("kto", undesirable_weight=-1.0)


@pytest.mark.parametrize(
    ("utility", "like", "dislike"),
    [
        ("sigmoid", 1 - sigma(0.4), 1 - sigma(-0.4)),
        ("loss_averse", 1 - math.log(sigma(0.4)), 1 - math.log(sigma(-0.4))),
        ("risk_seeking_1", 1 + math.log(sigma(-0.4)), 1 - math.log(sigma(-0.4))),
        ("risk_seeking_2", 2 - math.exp(0.004), 2 + math.exp(0.004)),
        ("risk_seeking_3", 1 + math.log(sigma(-0.4)), 1 + math.log(sigma(0.4))),
    ],
)
def test_utilities(utility: str, like: float, dislike: float) -> None:
    batch = images_of([0.4, 0.4], [1, -1])
    loss = build("kto", beta=1.0, kl="zero", utility=utility).loss(batch)[0]
    assert loss.tolist() == pytest.approx([like, dislike])
    gradient = torch.autograd.grad(loss.sum(), batch.error)[0]
    assert gradient[0] > 0 > gradient[1], "errors of likes go down, of dislikes up"
