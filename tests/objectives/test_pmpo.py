"""PMPO by hand: both kinds and one kind, and that the loss of dislikes has a floor."""

from __future__ import annotations

import pytest
import torch

from diffalign.diffusion.spaces import native_error
from diffalign.objectives import Denoised, Predictions, build
from tests.objectives.small import images_of


def batch_of(away: list[float], ref: list[float], role: list[int], weight: float | None = None) -> Denoised:
    """One-element images: predictions away from a target of 0."""
    pred, ref_pred = (torch.tensor(x, dtype=torch.float64).view(-1, 1, 1, 1) for x in (away, ref))
    pred.requires_grad_(True)
    target = torch.zeros_like(ref_pred)
    return Denoised(
        error=native_error(pred, target),
        ref_error=native_error(ref_pred, target),
        group=torch.arange(len(role)),
        role=torch.tensor(role),
        t=torch.zeros(len(role)),
        t_weight=None if weight is None else torch.full((len(role),), weight, dtype=torch.float64),
        tensors=Predictions(pred=pred, ref_pred=ref_pred, target=target, x_t=target, x0=target),
    )


def test_value_by_hand() -> None:
    """Gaps 0.09 - 0.04 = 0.05, distances 0.1^2."""
    batch = batch_of([0.3, 0.3, 0.3], [0.2, 0.2, 0.2], [1, -1, 0])
    loss, metrics = build("pmpo", alpha=0.25, kl_weight=1.5).loss(batch)
    base = 1.5 * 0.005
    assert loss.tolist() == pytest.approx([base + 0.25 * 0.025, base - 0.75 * 0.025, base - 0.25 * 0.025])
    assert metrics["distance"].tolist() == pytest.approx([0.005] * 3)
    weighted = build("pmpo", alpha=0.25, kl_weight=1.5).loss(batch_of([0.3], [0.2], [1], weight=2.0))[0]
    assert weighted.item() == pytest.approx(2 * (base + 0.25 * 0.025))


def test_dislikes_alone_have_a_floor() -> None:
    """Whatever the prediction; with kl_weight at 1 - alpha there would be none."""
    for away in (10.0, 1e3, -1e5):
        assert build("pmpo", alpha=0.0, kl_weight=1.1).loss(batch_of([away], [0.2], [-1]))[0].item() > 0
    with pytest.raises(ValueError, match=r"pmpo\.kl_weight is 0\.5; it must be above 1 - alpha = 0\.5"):
        build("pmpo", kl_weight=0.5)
    with pytest.raises(ValueError, match=r"pmpo\.alpha is 1\.5; it must be in \[0, 1\]"):
        build("pmpo", alpha=1.5)


def test_direction_at_the_reference() -> None:
    batch = batch_of([0.2, 0.2], [0.2, 0.2], [1, -1])
    loss = build("pmpo").loss(batch)[0].sum()
    assert batch.tensors is not None
    gradient = torch.autograd.grad(loss, batch.tensors.pred)[0].flatten()
    assert gradient.tolist() == pytest.approx([0.5 * 0.2, -0.5 * 0.2])


def test_one_kind_is_left_out_by_alpha() -> None:
    loss = build("pmpo", alpha=1.0, kl_weight=0.5).loss(batch_of([0.3], [0.2], [-1]))[0]
    assert loss.item() == pytest.approx(0.5 * 0.005), "nothing but the distance"


def test_missing_predictions_are_named() -> None:
    with pytest.raises(ValueError, match="pmpo needs the predictions"):
        build("pmpo").loss(images_of([0.1], [1]))
