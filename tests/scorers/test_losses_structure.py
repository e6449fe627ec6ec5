"""Losses of GPM, NIMA and the latent reward model against published numbers, and by hand."""

from __future__ import annotations

import pytest
import torch

from scorers.losses import pair_cross_entropy, pickscore_loss
from scorers.losses_reward import regression_loss
from scorers.losses_structure import emd, gpm_score, lrm_loss
from tests.scorers.test_losses import golden

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.mark.parametrize("d", [2, 4, 6])
def test_gpm_scores_and_losses(d: int) -> None:
    data = golden("gpm")
    a, b = data[f"d{d}_chosen"], data[f"d{d}_rejected"]
    score, first = gpm_score(a, b), torch.ones(len(a))
    torch.testing.assert_close(score, data[f"d{d}_score"], **CLOSE)
    torch.testing.assert_close(score, torch.einsum("bi,ji,bj->b", a, data[f"d{d}_R"], b), **CLOSE)
    found = pair_cross_entropy(score / 0.1, first).mean()
    torch.testing.assert_close(found, data[f"d{d}_loss_tau0.1"], **CLOSE)
    torch.testing.assert_close((score / 0.1).sigmoid().mean(), data[f"d{d}_prob_mean"], **CLOSE)
    regressed = regression_loss(score / 0.1, first).mean()
    torch.testing.assert_close(regressed, data[f"d{d}_reg_loss"], **CLOSE)


def test_gpm_other_temperatures_and_bradley_terry_as_a_special_case() -> None:
    data = golden("gpm")
    a, b, first = data["d2_chosen"], data["d2_rejected"], torch.ones(5)
    found = pair_cross_entropy(gpm_score(a, b), first).mean()
    torch.testing.assert_close(found, data["d2_loss_tau1"], **CLOSE)
    chosen, rejected = ((torch.stack([data[k], torch.ones(5)], 1)) for k in ("bt_chosen", "bt_rejected"))
    found = pair_cross_entropy(gpm_score(chosen, rejected) / 0.1, first).mean()
    torch.testing.assert_close(found, data["bt_loss_tau0.1"], **CLOSE)


def test_gpm_gate() -> None:
    data = golden("gpm")
    gate = (data["gate_prompt_hidden"] @ data["gate_prompt_head"].T).softmax(-1)
    score = gpm_score(data["gate_emb_chosen"], data["gate_emb_rejected"], gate)
    torch.testing.assert_close(score, data["gate_score"], **CLOSE)


def test_gpm_is_antisymmetric_and_turns_the_right_way() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(3, 4, generator=generator) for _ in range(2))
    torch.testing.assert_close(gpm_score(a, b), -gpm_score(b, a))
    a.requires_grad_()
    (grad,) = torch.autograd.grad(pair_cross_entropy(gpm_score(a, b), torch.ones(3)).sum(), a)
    assert (gpm_score(a - grad, b) > gpm_score(a, b)).all()


def test_emd() -> None:
    data = golden("nima")
    torch.testing.assert_close(emd(data["dist"], data["target"]), data["emd_r2"], **CLOSE)
    by_hand = emd(torch.tensor([[1.0, 0, 0, 0]]), torch.tensor([[0, 0, 1.0, 0]]), r=1)
    assert by_hand.tolist() == [0.5]  # two steps, over four bins
    equal = torch.full((1, 4), 0.25, requires_grad=True)
    (grad,) = torch.autograd.grad(emd(equal, torch.full((1, 4), 0.25)), equal)
    assert grad.tolist() == [[0, 0, 0, 0]]


def test_lrm_losses() -> None:
    data, given = golden("lrm_loss"), golden("pickscore_loss")
    features = (given["text"], given["image_0"], given["image_1"], data["timesteps"].reshape(-1, 2))
    aux, batch = float(data["aux_loss_coeff"]), float(data["batch_coeff"])

    def loss(pair: float, whole: float, aux_weight: float = aux) -> torch.Tensor:
        return lrm_loss(
            *features,
            scale=given["logit_scale"],
            label_0=given["label_0"],
            num_examples=given["num_examples_per_prompt"],
            aux_weight=aux_weight,
            pair_weight=pair,
            batch_weight=whole,
        )

    torch.testing.assert_close(loss(1, 0), data["loss_pair"], **CLOSE)
    torch.testing.assert_close(loss(0, 1), data["loss_batch"], **CLOSE)
    torch.testing.assert_close(loss(1, batch), data["loss_both"], **CLOSE)
    same = data["timesteps"].reshape(-1, 2)[:, 0] == data["timesteps"].reshape(-1, 2)[:, 1]
    assert 0 < same.sum() < 5
    alone = pickscore_loss(
        *(f[same] for f in features[:3]),
        scale=given["logit_scale"],
        label_0=given["label_0"][same],
        num_examples=given["num_examples_per_prompt"][same],
        weight_sum=(1 / given["num_examples_per_prompt"]).sum(),
    )
    torch.testing.assert_close(loss(1, 0, aux_weight=0.0), alone)
