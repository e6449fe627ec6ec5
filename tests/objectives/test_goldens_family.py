"""The margin family, flipped labels, automatic beta and KTO against published implementations' numbers."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from diffalign.diffusion.spaces import native_error
from diffalign.objectives import Denoised, Objective, build
from tests.objectives.test_goldens import FOLDER, golden, target_of

PRECISIONS = [(torch.float64, 1e-6), (torch.float32, 2e-4)]
KTO = sorted(path.stem for path in FOLDER.glob("diffusion_kto_*.npz"))
SHIFTS = {"kl-none": "batch", "kl-sigmoid": "balanced"}


def denoised(d: dict[str, Tensor], role: Tensor) -> tuple[Denoised, Tensor]:
    """Batch of a golden file, and the prediction that its gradient is of."""
    pred, n = d["model_pred"].clone().requires_grad_(True), len(role)
    target = target_of(d)
    batch = Denoised(
        error=native_error(pred, target),
        ref_error=native_error(d["ref_pred"], target),
        group=torch.arange(n // 2).repeat(2),
        role=role,
        t=torch.zeros(n),
    )
    return batch, pred


def check(
    objective: Objective, name: str, role: Tensor, dtype: torch.dtype, rtol: float, scale: float = 1.0
) -> None:
    """Loss and gradient, both divided by ``scale``."""
    exact = golden(name)
    batch, pred = denoised(golden(name, dtype), role)
    loss = objective.loss(batch)[0].mean() / scale
    gradient = torch.autograd.grad(loss, pred)[0].double()
    torch.testing.assert_close(loss.double(), exact["loss"].double(), rtol=rtol, atol=0)
    wanted = exact["grad_model_pred"].double()
    assert (gradient - wanted).abs().max() <= rtol * 10 * wanted.abs().max()


@pytest.mark.parametrize(("dtype", "rtol"), PRECISIONS)
@pytest.mark.parametrize(
    ("name", "objective", "beta", "scale"),
    [
        ("diffusers_dpo_hinge_beta2500", "hinge", 2500.0, 1.0),
        ("diffusers_dpo_ipo_beta2500", "ipo", 2500.0, 2500.0**2),
    ],
)
def test_diffusers(name, objective, beta, scale, dtype, rtol) -> None:
    made = build(objective, beta=beta, beta_convention="diffusers_sd15")
    check(made, name, torch.tensor([1, 1, -1, -1]), dtype, rtol, scale)


@pytest.mark.parametrize(("dtype", "rtol"), PRECISIONS)
def test_npo_is_dpo_on_flipped_labels(dtype, rtol) -> None:
    made = build("dpo", beta=500.0, beta_convention="diffusers_sd15")
    check(made, "diffusion_npo_dpo_beta500", torch.tensor([-1, -1, 1, 1]), dtype, rtol)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_automatic_beta(reduction) -> None:
    name = f"simpletuner_flow_dpo_autobeta_{reduction}"
    d = golden(name)
    elements = d["model_pred"][0].numel() if reduction == "sum" else 1
    # SimpleTuner's limits, 0.001 and 1, are of its own reduction: multiples of a beta of 1 there
    made = build("dpo", beta=float(elements), auto_beta=True, auto_beta_range=(1e-3, 1.0))
    check(made, name, torch.tensor([1, 1, -1, -1]), torch.float32, 2e-4)
    batch, _ = denoised(d, torch.tensor([1, 1, -1, -1]))
    metrics = made.loss(batch)[1]
    assert metrics["beta"].tolist() == [float(d["beta"]) * elements] * 2
    torch.testing.assert_close(2 * metrics["margin"], d["margin"].double(), rtol=1e-4, atol=0)


@pytest.mark.parametrize(("dtype", "rtol"), PRECISIONS)
@pytest.mark.parametrize("name", KTO)
def test_kto(name, dtype, rtol) -> None:
    utility, shift = re.fullmatch(r"diffusion_kto_(.+)_(kl-\w+)", name).groups()
    d = golden(name)
    made = build(
        "kto",
        beta=float(d["beta"]),
        beta_convention="diffusion_kto",
        utility=utility.replace("unbalanced_a", "sigmoid").replace("unbalanced_b", "sigmoid"),
        kl=SHIFTS[shift],
        desirable_weight=float(d["lambda_d"]),
        undesirable_weight=float(d["lambda_u"]),
    )
    role = 2 * d["labels"].long() - 1
    check(made, name, role, dtype, rtol)
    loss, metrics = made.loss(denoised(d, role)[0])
    torch.testing.assert_close(loss, d["l_kto"], rtol=1e-6, atol=0)
    torch.testing.assert_close(metrics["accuracy"].mean(), d["acc"])
    # the published shift is divided by a count + 1e-6
    torch.testing.assert_close(metrics["kl"][0] / float(d["beta"]), d["kl"].double(), rtol=1e-5, atol=1e-12)


FAMILY = [
    ("sigmoid", "dpo", {}, 1.0),
    ("hinge", "hinge", {}, 1.0),
    ("ipo", "ipo", {}, 4.0),
    ("robust", "rdpo", {"epsilon": 0.1}, 1.0),
    ("exo_pair", "exo", {"epsilon": 0.1}, 1.0),
    ("nca_pair", "nca", {}, 1.0),
    ("bco_pair", "bco", {"shift": "none"}, 1.0),
    ("sppo_hard", "sppo", {}, 4.0),
    ("apo_zero", "apo_zero", {}, 1.0),
    ("apo_down", "apo_zero", {"anchor": "down"}, 1.0),
    ("discopop", "discopop", {}, 1.0),
    ("simpo_refree_gamma.5", "simpo", {"gamma": 0.5}, 1.0),
    ("cdpo_refree_eps.1", "cpo", {"epsilon": 0.1, "sft_weight": 0.0}, 1.0),
]


@pytest.mark.parametrize(("dtype", "rtol"), PRECISIONS)
@pytest.mark.parametrize(("key", "name", "options", "scale"), FAMILY, ids=[k for k, *_ in FAMILY])
def test_family_on_log_likelihoods(key, name, options, scale, dtype, rtol) -> None:
    """A log-likelihood is the score s = -error / 2."""
    d, exact = golden("pairwise_family_on_logps", dtype), golden("pairwise_family_on_logps")
    chosen, rejected = (d[f"{side}_logps"].clone().requires_grad_(True) for side in ("chosen", "rejected"))
    n = len(chosen)
    batch = Denoised(
        error=-2 * torch.cat([chosen, rejected]),
        ref_error=-2 * torch.cat([d["ref_chosen_logps"], d["ref_rejected_logps"]]),
        group=torch.arange(n).repeat(2),
        role=torch.tensor([1] * n + [-1] * n),
        t=torch.zeros(2 * n),
    )
    loss = build(name, beta=2.0, **options).loss(batch)[0].mean() / scale
    torch.testing.assert_close(loss.double(), exact[f"loss_{key}"].double(), rtol=rtol, atol=0)
    for gradient, side in zip(
        torch.autograd.grad(loss, [chosen, rejected]), ("chosen", "rejected"), strict=True
    ):
        wanted = exact[f"grad_{side}_{key}"]
        assert (gradient.double() - wanted).abs().max() <= rtol * wanted.abs().max()


def test_every_formula_of_the_family_is_compared() -> None:
    keys = {k.removeprefix("loss_") for k in golden("pairwise_family_on_logps") if k.startswith("loss_")}
    assert keys == {key for key, *_ in FAMILY}
    assert len(KTO) == 10
