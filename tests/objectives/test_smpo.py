"""SmPO and InPO: golden numbers, the pair's own factor, labels from scores, flow models."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from diffalign.diffusion.process import Process
from diffalign.objectives import build
from diffalign.objectives.smpo import preference_probability
from tests.objectives.rows import PRECISIONS, check_golden, compare, golden, random_rows, rows


@pytest.mark.parametrize(("dtype", "rtol"), PRECISIONS)
def test_golden(dtype: torch.dtype, rtol: float) -> None:
    d = golden("smpo_loss", dtype)
    p = d["prob_winner"]
    objective = build("smpo", beta=2000.0, gamma=10.0)
    metrics = check_golden(objective, "smpo_loss", dtype, rtol, soft=torch.stack([p, 1 - p]))
    torch.testing.assert_close(metrics["margin"], d["inside_term"], rtol=10 * rtol, atol=0)


@pytest.mark.parametrize(("dtype", "rtol"), PRECISIONS)
def test_inpo_is_dpo_at_inverted_latents(dtype: torch.dtype, rtol: float) -> None:
    metrics = check_golden(build("dpo", beta=2000.0), "inpo_loss", dtype, rtol)
    expected = golden("inpo_loss")["inside_term"]
    torch.testing.assert_close(metrics["margin"].double(), expected, rtol=10 * rtol, atol=0)


def test_labels_from_scores() -> None:
    d = golden("smpo_loss")
    low, high = float(d["score_min"]), float(d["score_max"])
    p = preference_probability(d["pickscore_w"], d["pickscore_l"], low, high)
    torch.testing.assert_close(p, d["prob_winner"], rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="must not be empty"):
        preference_probability(d["pickscore_w"], d["pickscore_l"], 1.0, 1.0)


def test_the_factor_by_hand() -> None:
    soft = torch.tensor([0.55, 0.5, 0.3, 0.45, 0.5, 0.7], dtype=torch.float64)
    batch = random_rows(3, soft=soft)
    plain = build("dpo").loss(replace(batch, soft=None))[1]["margin"]
    loss, metrics = build("smpo").loss(batch)
    torch.testing.assert_close(metrics["margin"], torch.tensor([1.0, 0.0, -4.0]).double() * plain)
    assert loss[1].item() == pytest.approx(math.log(2))
    torch.testing.assert_close(metrics["pair_factor"], torch.tensor([1.0, 0.0, -4.0]).double())
    assert torch.autograd.grad(loss[1], batch.error)[0].abs().max() == 0, "an undecided pair teaches nothing"


def test_flow_errors_can_be_those_of_eps() -> None:
    """A flow model with the eps-equivalent weight has the loss of the eps model that predicts the same."""
    d = golden("smpo_loss")
    sigma, p = torch.full((2,), 0.6, dtype=torch.float64), d["prob_winner"]
    # n_hat = x_sigma + (1 - sigma) v_hat: dividing eps errors by 1 - sigma makes velocity errors of them
    pred = (d["model_pred"] / 0.4).requires_grad_(True)
    weight = Process(prediction="flow").weight(sigma, "eps_equivalent")
    soft = torch.stack([p, 1 - p])
    batch = rows(pred, d["ref_pred"] / 0.4, d["target"] / 0.4, soft=soft, t_weight=weight)
    loss = build("smpo").loss(batch)[0].mean()
    compare(loss, pred, d["loss"], 0.4 * d["grad_model_pred"], 1e-6)


def test_what_it_needs_is_declared_and_missed() -> None:
    assert build("smpo").needs == {"soft"}
    with pytest.raises(ValueError, match="smpo needs soft labels"):
        build("smpo").loss(random_rows(1))
    with pytest.raises(ValueError, match="gamma is 0; it must be above 0"):
        build("smpo", gamma=0)
