"""Terms around a pair objective: each by hand, none changes the loss within, and what they declare."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from diffalign.objectives import build
from tests.objectives.rows import random_rows


def gradients(name: str, options: dict[str, object]) -> tuple[Tensor, Tensor]:
    batch = random_rows(3)
    error = batch.error.detach().requires_grad_(True)
    loss = build(name, **options).loss(replace(batch, error=error))[0]
    return loss, torch.autograd.grad(loss.sum(), error)[0]


@pytest.mark.parametrize("inner", ["dpo", "mapo", "dmpo", "dspo", "sdpo"])
def test_without_terms_it_is_the_loss_within(inner: str) -> None:
    batch = random_rows(3)
    expected, metrics = build(inner).loss(batch)
    loss, found = build("with_terms", pair=build(inner)).loss(batch)
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)
    assert set(metrics) <= set(found)
    assert all(value.shape == loss.shape for value in found.values())


def test_sft_adds_the_winners_error() -> None:
    batch = random_rows(3)
    loss, metrics = build("with_terms", sft=0.5).loss(batch)
    torch.testing.assert_close(loss, build("dpo").loss(batch)[0] + 0.5 * batch.error[:3])
    torch.testing.assert_close(metrics["sft_term"], batch.error[:3].detach())


def test_sft_follows_weights_and_soft_labels() -> None:
    soft = torch.tensor([0.75] * 3 + [0.25] * 3, dtype=torch.float64)
    batch = random_rows(3, soft=soft, t_weight=torch.arange(6.0).double())
    weighted = torch.arange(6) * batch.error
    found = build("with_terms", sft=1.0).loss(batch)[1]["sft_term"]
    torch.testing.assert_close(found, (0.75 * weighted[:3] + 0.25 * weighted[3:]).detach())


def test_anchor_adds_half_the_distance_of_both_sides() -> None:
    batch = random_rows(3)
    assert batch.tensors is not None
    assert batch.tensors.ref_pred is not None
    apart = (batch.tensors.pred - batch.tensors.ref_pred).square().flatten(1).mean(1)
    loss = build("with_terms", anchor=2.0).loss(batch)[0]
    torch.testing.assert_close(loss, build("dpo").loss(batch)[0] + apart[:3] + apart[3:])
    slope = torch.autograd.grad(loss.sum(), batch.tensors.pred)[0]
    assert torch.isfinite(slope).all()


def test_anchor_on_rollouts_needs_no_tensors_and_adds_their_distance() -> None:
    objective = build("with_terms", anchor=2.0, anchor_on="rollouts")
    assert objective.needs == {"rollout_distance"}
    assert objective.needs_reference
    apart = torch.arange(6).double().requires_grad_(True)
    batch = replace(random_rows(3), tensors=None, extra={"rollout_distance": apart})
    loss = objective.loss(batch)[0]
    torch.testing.assert_close(loss, build("dpo").loss(batch)[0] + apart[:3] + apart[3:])
    assert torch.autograd.grad(loss.sum(), apart)[0].tolist() == [1.0] * 6
    assert build("with_terms", anchor_on="rollouts").needs == frozenset()


def test_loser_scales_the_gradient_and_no_value() -> None:
    (plain, whole), (loss, found) = gradients("dpo", {}), gradients("with_terms", {"loser": 0.25})
    torch.testing.assert_close(loss, plain, rtol=0, atol=0)
    torch.testing.assert_close(found[:3], whole[:3])
    torch.testing.assert_close(found[3:], 0.25 * whole[3:])
    assert gradients("with_terms", {"loser": 0.0})[1][3:].abs().max() == 0


def test_ties_are_not_scaled() -> None:
    batch = random_rows(3, role=torch.zeros(6).long())
    one, other = (
        torch.autograd.grad(build(n, **o).loss(batch)[0].sum(), batch.error, retain_graph=True)[0]
        for n, o in (("dpo", {}), ("with_terms", {"loser": 0.0}))
    )
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_sdpo_is_the_safeguard() -> None:
    torch.testing.assert_close(gradients("with_terms", {"sdpo": 0.9})[1], gradients("sdpo", {"mu": 0.9})[1])
    both = gradients("with_terms", {"sdpo": 0.9, "loser": 0.5})[1]
    torch.testing.assert_close(both[3:], 0.5 * gradients("sdpo", {"mu": 0.9})[1][3:])


def test_needs_follow_the_terms() -> None:
    plain = build("with_terms", sft=1.0, loser=0.5)
    assert plain.needs == frozenset()
    assert not plain.coupled
    assert build("with_terms", anchor=1.0).needs == {"tensors"}
    guarded = build("with_terms", sdpo=0.5, pair=build("smpo"))
    assert guarded.needs == {"tensors", "soft"}
    assert guarded.coupled
    assert not build("with_terms", pair=build("mapo")).needs_reference
    assert build("with_terms", pair=build("mapo"), anchor=1.0).needs_reference
    assert build("with_terms", pair=build("rpo")).coupled


@pytest.mark.parametrize("option", ["sft", "anchor", "loser"])
def test_options_are_checked(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} is -1; it must be at least 0"):
        build("with_terms", **{option: -1})
    with pytest.raises(ValueError, match=r"sdpo is 2; it must be in \[0, 1\]"):
        build("with_terms", sdpo=2)
    with pytest.raises(ValueError, match="this one is on ranking"):
        build("with_terms", pair=build("rankdpo"))
