"""Processes and timestep samplers: golden conversions, round trips, ranges, seeding."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from diffalign.diffusion.corrupt import GaussianNoise, draw_seed, seeded_noise
from diffalign.diffusion.process import Process
from diffalign.diffusion.spaces import native_error
from diffalign.diffusion.timesteps import Discrete, LogitNormal, Uniform
from tests.objectives.test_goldens import golden


def vp(prediction: str) -> Process:
    return Process(prediction=prediction, alphas_cumprod=golden("conversions_vp_v_to_eps")["alphas_cumprod"])  # type: ignore[arg-type]


def test_golden_vp_conversions() -> None:
    d = golden("conversions_vp_v_to_eps")
    process, t = vp("v"), d["timesteps"].long()
    torch.testing.assert_close(process.add_noise(d["latents"], d["noise"], t), d["x_t"], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(
        process.target(d["latents"], d["noise"], t), d["v_target"], rtol=1e-6, atol=1e-7
    )
    eps = process.convert(d["v_pred"], d["x_t"], t, "eps")
    x0 = process.convert(d["v_pred"], d["x_t"], t, "x0")
    torch.testing.assert_close(eps, d["eps_pred"], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(x0, d["x0_pred"], rtol=1e-6, atol=1e-6)
    error = native_error(d["v_pred"], d["v_target"])
    torch.testing.assert_close(error, d["err_v"], rtol=1e-6, atol=0)
    torch.testing.assert_close(
        process.weight(t, "eps_equivalent") * error, d["err_eps"], rtol=1e-5, atol=1e-9
    )
    torch.testing.assert_close(process.weight(t, "x0_equivalent") * error, d["err_x0"], rtol=1e-5, atol=1e-9)


def test_golden_flow_conversions() -> None:
    d = golden("conversions_flow")
    process, t = Process(prediction="flow"), d["sigmas"]
    torch.testing.assert_close(process.add_noise(d["latents"], d["noise"], t), d["x_t"], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(
        process.target(d["latents"], d["noise"], t), d["v_target"], rtol=1e-6, atol=1e-7
    )
    torch.testing.assert_close(
        process.convert(d["v_pred"], d["x_t"], t, "eps"), d["eps_pred"], rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(
        process.convert(d["v_pred"], d["x_t"], t, "x0"), d["x0_pred"], rtol=1e-6, atol=1e-6
    )
    error = native_error(d["v_pred"], d["v_target"])
    torch.testing.assert_close(
        process.weight(t, "eps_equivalent") * error, d["err_eps"], rtol=1e-5, atol=1e-9
    )
    torch.testing.assert_close(process.weight(t, "x0_equivalent") * error, d["err_x0"], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(("own", "other"), list(product(("eps", "x0", "v"), repeat=2)))
def test_conversions_round_trip(own: str, other: str) -> None:
    torch.manual_seed(0)
    x0, noise = torch.randn(2, 5, 4, 3, 3, dtype=torch.float64)
    t = torch.tensor([1, 100, 400, 800, 990])
    process = vp(own)
    x_t, pred = process.add_noise(x0, noise, t), process.target(x0, noise, t)
    turned = process.convert(pred, x_t, t, other)  # type: ignore[arg-type]
    torch.testing.assert_close(turned, vp(other).target(x0, noise, t), rtol=1e-7, atol=1e-7)


def test_timesteps_cover_their_range() -> None:
    u = torch.rand(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    process = vp("eps")
    t = Uniform().times(u, process)
    assert (t.min(), t.max()) == (0, 999)
    assert abs(t.float().mean() - 499.5) < 8
    assert Uniform(low=0.2, high=0.4).times(u, process).min() >= 200
    assert set(Discrete().times(u, process).tolist()) == {249, 499, 749, 999}
    sigma = LogitNormal().times(u, Process(prediction="flow"))
    assert 0 < sigma.min() < sigma.max() <= 1
    assert abs(torch.logit(sigma.double()).std() - 1) < 0.02
    with pytest.raises(ValueError, match="low < high"):
        Uniform(low=0.5, high=0.5)


def test_noise_is_shared_within_units_and_independent_of_the_batch() -> None:
    x0 = torch.randn(4, 4, 8, 8)
    process = vp("eps")
    both = GaussianNoise()(x0, [7, 7, 9, 9], process, Uniform())
    alone = GaussianNoise()(x0[2:], [9, 9], process, Uniform())
    torch.testing.assert_close(both.target[0], both.target[1], rtol=0, atol=0)
    torch.testing.assert_close(both.target[2:], alone.target, rtol=0, atol=0)
    torch.testing.assert_close(both.x_t[2:], alone.x_t, rtol=0, atol=0)
    assert both.t.tolist()[0] == both.t.tolist()[1] != both.t.tolist()[2]
    apart = GaussianNoise(name="independent_noise")(x0, [7, 7, 9, 9], process, Uniform())
    assert not torch.equal(apart.target[0], apart.target[1])
    assert apart.t[0] == apart.t[1]
    other_seed = GaussianNoise()(x0, [8, 8, 10, 10], process, Uniform())
    assert not torch.equal(other_seed.target, both.target)


def test_neighbouring_seeds_are_uncorrelated() -> None:
    noise = seeded_noise([draw_seed("noise", 0, 0, i) for i in range(64)], torch.zeros(64, 4096))
    correlation = noise @ noise.T / 4096 - torch.eye(64)
    assert correlation.abs().max() < 0.1
    assert abs(noise.std() - 1) < 0.01
