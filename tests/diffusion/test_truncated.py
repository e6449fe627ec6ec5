"""Truncated sampling: the published trajectory, its times, noising on, a teacher that is right, seeds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffalign.diffusion.process import Process
from diffalign.diffusion.timesteps import Uniform
from diffalign.diffusion.truncated import (
    TruncatedSampling,
    grid_time,
    later_time,
    renoise,
    target_of,
    teacher_steps,
)
from tests.objectives.rows import golden

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
VP = Process(prediction="eps", alphas_cumprod=torch.cumprod(1 - BETAS, 0))
V = Process(prediction="v", alphas_cumprod=VP.alphas_cumprod)
FLOW = Process(prediction="flow")


def published_teacher(x: Tensor, t: Tensor) -> Tensor:
    """Unconditional prediction of the stub network that the golden file was made with."""
    return 0.5 * x + 0.2 * torch.sin(t.double() / 50).view(-1, 1, 1, 1) - 0.2


def test_the_published_trajectory() -> None:
    """Start, five steps and the clean picture of the golden file, whose noise is that of its seed."""
    d = golden("self_npo_huber")
    noise = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(11)).double()
    process = Process(prediction="eps", alphas_cumprod=d["alphas_cumprod"])
    place = d["start_timesteps"] // 40
    times = [grid_time(place - i, 25, process) for i in range(6)]
    assert times[0].tolist() == d["start_timesteps"].tolist()
    assert times[-1].tolist() == d["timesteps"].tolist()
    start = process.add_noise(d["latents"], noise, times[0])
    x_t, seen = teacher_steps(start, times, process, published_teacher)
    torch.testing.assert_close(x_t, d["x_prev"], rtol=0, atol=3e-6)  # the file is float32
    torch.testing.assert_close(seen, d["target_x0"], rtol=0, atol=1e-5)


def test_noising_on_matches_the_published_formula() -> None:
    d = golden("self_npo_huber")
    process = Process(prediction="eps", alphas_cumprod=d["alphas_cumprod"])
    t, s, noise = d["timesteps"], d["sampled_timesteps"], torch.randn(4, 4, 8, 8).double()
    wide = [v.view(-1, 1, 1, 1) for v in (*process.coefficients(t), *process.coefficients(s))]
    a_t, sigma_t, a_s, sigma_s = wide
    spread = ((sigma_s / a_s) ** 2 - (sigma_t / a_t) ** 2).sqrt()
    expected = a_s * (d["x_prev"] / a_t + spread * noise)
    torch.testing.assert_close(renoise(d["x_prev"], t, s, noise, process), expected)


@pytest.mark.parametrize("process", [VP, V, FLOW])
def test_a_teacher_that_is_right_gives_the_plain_target(process: Process) -> None:
    """Who knows x0 steps along the line to it, sees x0, and the target means x0 at (x_s, s)."""
    x0 = torch.randn(6, 4, 8, 8, dtype=torch.float64)

    def knows(x: Tensor, t: Tensor) -> Tensor:
        return target_of(x0, x, t.clamp(min=1e-6) if process.is_flow else t, process)

    corrupted = TruncatedSampling()(x0, list(range(6)), process, Uniform(), knows)
    seen = process.convert(corrupted.target, corrupted.x_t, corrupted.t, "x0")
    torch.testing.assert_close(seen, x0, rtol=1e-6, atol=1e-6)
    _, sigma = process.coefficients(corrupted.t)
    noise = process.convert(corrupted.target, corrupted.x_t, corrupted.t, "eps")
    assert (noise.flatten(1).std(1) - 1).abs().max() < 0.25, "x_s has the noise level of s"
    assert (sigma > 0).all()


@pytest.mark.parametrize("process", [VP, FLOW])
def test_s_is_after_t_and_within_range(process: Process) -> None:
    u = torch.rand(500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = grid_time(torch.arange(500) % 25 - 5, 25, process)
    s = later_time(t, u, process)
    assert (s > t).all()
    assert s.max() <= (1 if process.is_flow else 999)
    share = ((s - t) / ((1 if process.is_flow else 999) - t)).double()
    assert abs(share.mean().item() - 0.5) < 0.05


@pytest.mark.parametrize("process", [VP, FLOW])
def test_it_stops_at_the_clean_end(process: Process) -> None:
    calls: list[Tensor] = []

    def teacher(x: Tensor, t: Tensor) -> Tensor:
        calls.append(t)
        return torch.zeros_like(x)

    x0 = torch.randn(2, 4, 8, 8)
    found = TruncatedSampling(steps=5)(x0, [1, 2], process, Uniform(high=0.04), teacher)
    assert len(calls) == 6
    assert calls[-1].tolist() == [0, 0]
    assert torch.isfinite(found.x_t).all()
    assert torch.isfinite(found.target).all()


def test_draws_hang_on_the_unit_alone() -> None:
    x0 = torch.randn(3, 4, 8, 8)
    together = TruncatedSampling()(x0, [7, 8, 9], VP, Uniform(), published_teacher)
    alone = TruncatedSampling()(x0[1:2], [8], VP, Uniform(), published_teacher)
    torch.testing.assert_close(together.x_t[1:2], alone.x_t)
    torch.testing.assert_close(together.target[1:2], alone.target)
    assert together.t[1] == alone.t[0]


def test_no_gradient_through_the_teacher() -> None:
    weight = torch.ones((), requires_grad=True)
    found = TruncatedSampling()(torch.randn(1, 4, 8, 8), [1], VP, Uniform(), lambda x, t: weight * x)
    assert not found.target.requires_grad
    assert not found.x_t.requires_grad


def test_wrong_use_is_named() -> None:
    with pytest.raises(ValueError, match="asks the teacher"):
        TruncatedSampling()(torch.zeros(1, 4, 8, 8), [1], VP, Uniform())
    with pytest.raises(ValueError, match="grid is 1"):
        TruncatedSampling(grid=1)
