"""DiNa-LRM's losses and LPO's filter on the published numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from scorers.lrm_filter import MPCF_STRATEGIES, confirmed_ties, supported
from scorers.lrm_losses import DINA_LOSSES, DinaLoss, dina_loss, fidelity_loss, thurstone_prob

GOLDEN = Path(__file__).parents[1] / "golden" / "online" / "latent_reward.npz"


@pytest.fixture(scope="module")
def d() -> dict[str, Tensor]:
    with np.load(GOLDEN, allow_pickle=False) as file:
        return {k: torch.as_tensor(file[k]) for k in file.files}


@pytest.mark.parametrize("kind", DINA_LOSSES)
def test_published_losses(kind: DinaLoss, d: dict[str, Tensor]) -> None:
    chosen = d["dina_chosen"].clone().requires_grad_()
    gap = (chosen - d["dina_reject"])[:, 0]
    loss = dina_loss(gap, d["dina_sigma"], torch.ones(6), kind).mean()
    torch.testing.assert_close(loss, d[f"dina_{kind}_loss"], rtol=1e-4, atol=1e-5)
    (grad,) = torch.autograd.grad(loss, chosen)
    wanted = d[f"dina_{kind}_grad"]
    # fp32's Phi and its slope differ by 1e-7 between formulas, which shows where the gradient is 1e-5
    torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", DINA_LOSSES)
def test_both_orders_of_a_pair_are_the_same(kind: DinaLoss) -> None:
    gap = torch.linspace(-3, 3, 7, dtype=torch.float64)
    sigma, label = torch.full((7,), 0.4, dtype=torch.float64), torch.tensor([1.0, 0, 0.5, 1, 0.3, 0, 1])
    there, back = dina_loss(gap, sigma, label, kind), dina_loss(-gap, sigma, 1 - label, kind)
    torch.testing.assert_close(there, back)


def test_a_tie_wants_equal_scores_and_a_wrong_label_pulls_little() -> None:
    gap = torch.linspace(-4, 4, 81, dtype=torch.float64, requires_grad=True)
    tie = dina_loss(gap, torch.tensor(0.2).double(), torch.full((81,), 0.5))
    assert int(tie.argmin()) == 40
    assert float(tie[40].detach()) == pytest.approx(0, abs=1e-5)
    won = fidelity_loss(thurstone_prob(gap, 0.5), torch.ones(81))
    (grad,) = torch.autograd.grad(won.sum(), gap)
    assert bool((grad <= 0).all())
    assert bool(grad.isfinite().all())
    assert bool((won <= 1).all())


def test_noise_makes_a_comparison_less_sure() -> None:
    gap = torch.ones(2)
    low, high = thurstone_prob(gap, torch.tensor([0.05, 2.05])).tolist()
    assert 0.5 < high < low < 1
    with pytest.raises(ValueError, match="no DiNa loss 'probit'"):
        dina_loss(gap, gap, gap, "probit")  # type: ignore[arg-type]


def test_published_filter(d: dict[str, Tensor]) -> None:
    gaps = {"aesthetic": d["G_A"], "clip": d["G_C"], "vqa": d["G_V"]}
    for number, least in MPCF_STRATEGIES.items():
        assert torch.equal(supported(gaps, least), d[f"mpcf_s{number}"])
    swapped = {k: -v for k, v in gaps.items()}
    assert torch.equal(confirmed_ties(gaps), confirmed_ties(swapped))
    assert torch.equal(confirmed_ties(gaps), d["mpcf_tie"])
    with pytest.raises(ValueError, match="no gaps of clip; there are those of aesthetic"):
        supported({"aesthetic": d["G_A"]}, {"clip": 0.0})
