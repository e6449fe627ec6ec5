"""SePPO: golden numbers of three rules, the sign by hand, further draws for the anchor."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from diffalign.objectives import Denoised, build
from tests.objectives.rows import PRECISIONS, check_golden, golden, random_rows


@pytest.mark.parametrize(("dtype", "rtol"), PRECISIONS)
@pytest.mark.parametrize("flip", ["sign", "indicator", "none"])
def test_golden(flip: str, dtype: torch.dtype, rtol: float) -> None:
    name = f"seppo_{flip}_beta2000"
    metrics = check_golden(build("seppo", flip=flip), name, dtype, rtol)
    d = golden(name, dtype)
    torch.testing.assert_close(metrics["flip"], d["flip"])
    torch.testing.assert_close(metrics["accuracy"].mean(), d["implicit_acc"])


def pair(win: float, made: float) -> Denoised:
    """A pair with reference errors 1; gaps are the errors minus 1."""
    return Denoised(
        error=torch.tensor([win, made], dtype=torch.float64, requires_grad=True),
        ref_error=torch.ones(2, dtype=torch.float64),
        group=torch.tensor([0, 0]),
        role=torch.tensor([1, -1]),
        t=torch.zeros(2),
    )


@pytest.mark.parametrize(("win", "sign"), [(0.9, 1), (1.1, -1), (1.0, 0)])
def test_which_way_the_made_picture_goes(win: float, sign: int) -> None:
    batch = pair(win, 0.8)
    loss, metrics = build("seppo", beta=10.0).loss(batch)
    assert metrics["margin"].item() == pytest.approx(-5 * ((win - 1) - sign * -0.2))
    slope = torch.autograd.grad(loss.sum(), batch.error)[0]
    assert slope[0] > 0
    assert torch.sign(slope[1]) == -sign, "a better policy pushes the checkpoint's picture away"


def test_none_is_dpo() -> None:
    batch = random_rows(4)
    torch.testing.assert_close(build("seppo", flip="none").loss(batch)[0], build("dpo").loss(batch)[0])


def test_the_factor_has_no_gradient() -> None:
    batch = random_rows(4)
    flip = build("seppo").loss(batch)[1]["flip"]
    assert not flip.requires_grad


def test_further_draws_decide_where_asked() -> None:
    batch = pair(0.9, 0.8)  # this draw says better, the others say worse
    more = {"anchor_error": torch.tensor([1.5, 0.0]), "anchor_ref_error": torch.tensor([1.0, 9.0])}
    objective = build("seppo", anchor="more_draws")
    assert objective.needs == {"anchor_error", "anchor_ref_error"}
    assert build("seppo").needs == frozenset()
    assert objective.loss(replace(batch, extra=more))[1]["flip"].item() == -1
    with pytest.raises(ValueError, match="seppo needs extra\\['anchor_error'\\]"):
        objective.loss(batch)
