"""Self-NPO: golden numbers of both distances, huber's ends, what it asks of a batch."""

from __future__ import annotations

import pytest
import torch

from diffalign.diffusion.process import Process
from diffalign.diffusion.spaces import native_error
from diffalign.diffusion.truncated import target_of
from diffalign.objectives import Denoised, Predictions, build
from tests.objectives.rows import compare, golden


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-5), (torch.float32, 2e-4)])
@pytest.mark.parametrize("distance", ["huber", "l2"])
def test_golden(distance: str, dtype: torch.dtype, rtol: float) -> None:
    """The published run is fp32 only: in float64 its own rounding remains (1e-5)."""
    d = golden(f"self_npo_{distance}", dtype)
    process = Process(prediction="eps", alphas_cumprod=d["alphas_cumprod"])
    s = d["sampled_timesteps"]
    pred = d["eps_pred"].clone().requires_grad_(True)
    target = target_of(d["target_x0"], d["sampled_x"], s, process)
    batch = winners(pred, target, process.weight(s, "x0_equivalent"))
    loss = build("self_npo", distance=distance, c=float(d["huber_c"])).loss(batch)[0].mean()
    compare(loss, pred, d["loss"], d["grad_eps_pred"], rtol)


def winners(pred: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None) -> Denoised:
    n = len(pred)
    return Denoised(
        error=native_error(pred, target),
        ref_error=None,
        group=torch.arange(n),
        role=torch.ones(n).long(),
        t=torch.zeros(n),
        t_weight=weight,
        tensors=Predictions(pred=pred, ref_pred=None, target=target, x_t=target, x0=target),
    )


def test_huber_is_square_near_zero_and_linear_far_out() -> None:
    target = torch.zeros(2, 1, 1, 1, dtype=torch.float64)
    pred = torch.tensor([1e-9, 10.0], dtype=torch.float64).view(2, 1, 1, 1).requires_grad_(True)
    loss = build("self_npo").loss(winners(pred, target, None))[0]
    assert loss.tolist() == pytest.approx([1e-18 / 2e-3, 10 - 1e-3], rel=1e-6)


def test_no_infinite_gradient_at_a_perfect_prediction() -> None:
    pred = torch.ones(1, 1, 2, 2, requires_grad=True)
    loss = build("self_npo").loss(winners(pred, torch.ones(1, 1, 2, 2), torch.tensor([1e4])))[0].sum()
    assert loss.item() == 0
    assert torch.autograd.grad(loss, pred)[0].abs().max() == 0


def test_what_it_needs_is_declared_and_missed() -> None:
    objective = build("self_npo")
    assert objective.needs == {"tensors"}
    assert not objective.needs_reference
    batch = winners(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), None)
    batch.tensors = None
    with pytest.raises(ValueError, match="self_npo needs prediction tensors"):
        objective.loss(batch)
    with pytest.raises(ValueError, match="c is 0; it must be above 0"):
        build("self_npo", c=0)
