"""DPO and SFT against the numbers of the published implementations, loss and gradient, in both precisions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from diffalign.diffusion.process import Process
from diffalign.diffusion.spaces import native_error
from diffalign.objectives import Denoised, Objective, build

FOLDER = Path(__file__).parents[1] / "golden" / "offline"
PAIRS = {
    "diffusion_dpo_eps_beta2000": "canonical",
    "diffusion_dpo_eps_beta5000": "salesforce",
    "diffusers_dpo_sigmoid_beta2500": "diffusers_sd15",
    "flow_dpo_velocity_beta100": "canonical",
    "flow_dpo_velocity_beta500": "canonical",
    "flow_dpo_velocity_beta2000": "canonical",
    "flow_dpo_velocity_betat_500": "canonical",
}


def golden(name: str, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        found = {k: torch.as_tensor(file[k]) for k in file.files}
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in found.items()}


def target_of(d: dict[str, Tensor]) -> Tensor:
    if "target" in d:
        return d["target"]
    n = len(d["model_pred"]) // 2
    sigma = d["sigmas"] if len(d["sigmas"]) == 2 * n else d["sigmas"].repeat(2)
    return Process(prediction="flow").target(d["latents"], d["noise"], sigma)


def run(objective: Objective, d: dict[str, Tensor], weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    pred = d["model_pred"].clone().requires_grad_(True)
    target, n = target_of(d), len(d["model_pred"]) // 2
    batch = Denoised(
        error=native_error(pred, target),
        ref_error=native_error(d["ref_pred"], target),
        group=torch.arange(n).repeat(2),
        role=torch.tensor([1] * n + [-1] * n),
        t=torch.zeros(2 * n),
        t_weight=weight,
    )
    loss = objective.loss(batch)[0].mean()
    return loss, torch.autograd.grad(loss, pred)[0]


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-6), (torch.float32, 2e-4)])
@pytest.mark.parametrize("name", list(PAIRS))
def test_dpo(name: str, dtype: torch.dtype, rtol: float) -> None:
    d = golden(name, dtype)
    weight = None
    if "betat" in name:
        sigma = d["sigmas"] if len(d["sigmas"]) == 4 else d["sigmas"].repeat(2)
        weight = Process(prediction="flow").weight(sigma, "eps_equivalent")
    loss, gradient = run(build("dpo", beta=float(d["beta"]), beta_convention=PAIRS[name]), d, weight)
    exact = golden(name)
    torch.testing.assert_close(loss.double(), exact["loss"].double(), rtol=rtol, atol=0)
    largest = exact["grad_model_pred"].abs().max()
    assert (gradient.double() - exact["grad_model_pred"]).abs().max() <= rtol * 10 * largest


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-6), (torch.float32, 2e-4)])
def test_sft(dtype: torch.dtype, rtol: float) -> None:
    d = golden("sft_eps", dtype)
    pred = d["model_pred"].clone().requires_grad_(True)
    n = len(pred)
    error = native_error(pred, d["target"])
    batch = Denoised(
        error=error, ref_error=None, group=torch.arange(n), role=torch.ones(n).long(), t=torch.zeros(n)
    )
    loss = build("sft").loss(batch)[0].mean()
    torch.testing.assert_close(loss.double(), golden("sft_eps")["loss"].double(), rtol=rtol, atol=0)
    gradient = torch.autograd.grad(loss, pred)[0].double()
    torch.testing.assert_close(gradient, golden("sft_eps")["grad_model_pred"], rtol=rtol * 10, atol=1e-9)


def test_accuracy_matches_the_published_one() -> None:
    d = golden("diffusion_dpo_eps_beta5000")
    n = 2
    target = d["target"]
    batch = Denoised(
        error=native_error(d["model_pred"], target),
        ref_error=native_error(d["ref_pred"], target),
        group=torch.arange(n).repeat(2),
        role=torch.tensor([1, 1, -1, -1]),
        t=torch.zeros(4),
    )
    metrics = build("dpo", beta=5000.0).loss(batch)[1]
    torch.testing.assert_close(metrics["accuracy"].mean(), d["implicit_acc"])
    torch.testing.assert_close(metrics["margin"], d["inside_term"], rtol=1e-6, atol=0)
