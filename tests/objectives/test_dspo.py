"""DSPO: golden numbers of both forms, the switch, soft labels, what it asks of a batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from diffalign.objectives import build
from tests.objectives.rows import PRECISIONS, check_golden, random_rows


@pytest.mark.parametrize(("dtype", "rtol"), PRECISIONS)
@pytest.mark.parametrize(("form", "beta"), [("sd15", 0.001), ("sdxl", 5000.0)])
def test_golden(form: str, beta: float, dtype: torch.dtype, rtol: float) -> None:
    check_golden(build("dspo", form=form, beta=beta), f"dspo_{form}", dtype, rtol)


def test_sdxl_weighs_the_drift_beyond_the_switch() -> None:
    batch = random_rows(3)
    assert batch.tensors is not None
    drift = (batch.tensors.pred - batch.tensors.ref_pred).square().flatten(1).mean(1)[:3]  # about 1e-4
    near = build("dspo", form="sdxl", beta=100.0).loss(batch)[0]
    far = build("dspo", form="sdxl", beta=100.0, switch=1e-6).loss(batch)[0]
    torch.testing.assert_close(far, near * drift)


def test_without_drift_it_is_plain_fine_tuning() -> None:
    batch = random_rows(3)
    assert batch.tensors is not None
    same = replace(batch, tensors=replace(batch.tensors, ref_pred=batch.tensors.pred.detach()))
    same.ref_error = batch.error.detach()
    torch.testing.assert_close(build("dspo", beta=1000.0).loss(same)[0], batch.error[:3])


@pytest.mark.parametrize("form", ["sd15", "sdxl"])
def test_soft_labels_mix_both_directions(form: str) -> None:
    batch = random_rows(3)
    objective = build("dspo", form=form, beta=5.0)
    one = objective.loss(batch)[0]
    other = objective.loss(replace(batch, role=-batch.role))[0]
    soft = torch.tensor([0.7] * 3 + [0.3] * 3, dtype=torch.float64)
    torch.testing.assert_close(objective.loss(replace(batch, soft=soft))[0], 0.7 * one + 0.3 * other)


def test_what_it_needs_is_declared_and_missed() -> None:
    objective, batch = build("dspo"), random_rows(1)
    assert objective.needs == {"tensors"}
    assert not objective.coupled
    with pytest.raises(ValueError, match="dspo needs prediction tensors"):
        objective.loss(replace(batch, tensors=None))
    assert batch.tensors is not None
    with pytest.raises(ValueError, match="reference must not be none"):
        objective.loss(replace(batch, tensors=replace(batch.tensors, ref_pred=None)))
    with pytest.raises(ValueError, match="switch is -1; it must be above 0"):
        build("dspo", switch=-1)
