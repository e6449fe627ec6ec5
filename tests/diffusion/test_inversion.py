"""Inversions: the released implementations' numbers, exact landing, seeding, and closed forms by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from diffalign.diffusion.corrupt import Corrupted, Corruptor, corruptors, draw_seed
from diffalign.diffusion.ddim_inversion import DDIMInversion, implied_noise
from diffalign.diffusion.inversion import exact_grid, invert, legacy_grid, posterior_std
from diffalign.diffusion.process import Process
from diffalign.diffusion.renoise_inversion import RenoiseInversion
from diffalign.diffusion.timesteps import Discrete, LogitNormal, Uniform
from tests.objectives.test_goldens import golden

NAMES = ["ddim_inversion", "renoise_inversion"]
ALPHAS = golden("smpo_inversion_n5_t437")["alphas_cumprod"]
GOLDENS = {
    "inpo_inversion_n10_t437_eta0": "diffusers-0.42",
    "inpo_inversion_n10_t437_eta0.1_seed0": "diffusers-0.42",
    "inpo_inversion_dif020_n10_t437_eta0": "diffusers-0.20",
    "inpo_inversion_dif020_n10_t437_eta0.1_seed0": "diffusers-0.20",
    "inpo_inversion_dif020_n10_t960_eta0": "diffusers-0.20",
} | {
    f"smpo_inversion_{old}n5_t{t}": legacy
    for old, legacy in (("", "diffusers-0.42"), ("dif020_", "diffusers-0.20"))
    for t in (3, 437, 960)
}


def vp(prediction: str = "eps") -> Process:
    return Process(prediction=prediction, alphas_cumprod=ALPHAS)  # type: ignore[arg-type]


def stub(x: Tensor, t: Tensor) -> Tensor:
    """The golden files' denoiser: eps = 0.6 x + 0.3 sin(t / 100)."""
    return 0.6 * x + 0.3 * torch.sin(t.double() / 100).to(x.dtype).view(-1, 1, 1, 1)


def process_of(kind: str) -> Process:
    return Process(prediction="flow") if kind == "flow" else vp(kind)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.float32, 2e-4)])
@pytest.mark.parametrize("name", list(GOLDENS))
def test_released_inversions(name: str, dtype: torch.dtype, tolerance: float) -> None:
    """The files are float32 runs, which bounds how near a float64 run can be."""
    d = golden(name, dtype)
    process = Process(prediction="eps", alphas_cumprod=ALPHAS.to(dtype))
    t = torch.full((2,), int(d["timestep"]))
    grid = legacy_grid(t, int(d["num_inversion_steps"]), process, GOLDENS[name])  # type: ignore[arg-type]
    assert grid.ask[grid.active[:, 0], 0].tolist() == d["used_timesteps"].tolist()
    generator, shape = torch.Generator().manual_seed(0), d["latents"].shape
    asked = []

    def predict(x: Tensor, times: Tensor) -> Tensor:
        asked.append(times[0].item())
        return stub(x, times)

    midpoint = name.startswith("smpo")
    x, _ = invert(
        d["latents"], grid, process, predict, midpoint=midpoint, eta=0.1 if "eta0.1" in name else 0.0,
        draw=lambda k: torch.randn(shape, generator=generator).to(dtype),
    )  # fmt: skip
    assert len(asked) == (1 + midpoint) * len(grid.ask)
    torch.testing.assert_close(x, d["noisy_latents"], rtol=tolerance, atol=tolerance)
    noise = implied_noise(x, d["latents"], t, process)
    torch.testing.assert_close(noise, d["implied_noise"], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", [n for n in GOLDENS if "eta0.1" not in n])
def test_corruptor_with_legacy_gives_the_released_numbers(name: str) -> None:
    d = golden(name)
    kind = RenoiseInversion if name.startswith("smpo") else DDIMInversion
    corruptor = kind(steps=int(d["num_inversion_steps"]), legacy=GOLDENS[name])  # type: ignore[arg-type]
    noisy = corruptor(d["latents"], [1, 2], vp(), Discrete(steps=(int(d["timestep"]),)), stub)
    torch.testing.assert_close(noisy.x_t, d["noisy_latents"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(noisy.target, d["implied_noise"], rtol=1e-5, atol=1e-5)


def test_legacy_is_for_eps_models_only() -> None:
    corruptor = DDIMInversion(legacy="diffusers-0.20")
    for kind in ("v", "flow"):
        with pytest.raises(ValueError, match="eps models only"):
            corruptor.check(process_of(kind))
    corruptor.check(vp())


def corrupted(name: str, kind: str, **options: Any) -> tuple[Tensor, Corrupted, list[Tensor]]:
    x0 = torch.randn(6, 4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    asked: list[Tensor] = []

    def predict(x: Tensor, t: Tensor) -> Tensor:
        asked.append(t)
        return stub(x, t)

    units = [draw_seed(u) for u in (1, 1, 2, 2, 3, 3)]
    corruptor: Corruptor = corruptors.get(name)(**options)
    return x0, corruptor(x0, units, process_of(kind), Uniform(), predict), asked


@pytest.mark.parametrize("grid", ["shared", "own"])
@pytest.mark.parametrize("kind", ["eps", "v", "x0", "flow"])
@pytest.mark.parametrize("name", NAMES)
def test_lands_on_each_rows_own_t(name: str, kind: str, grid: str) -> None:
    x0, noisy, asked = corrupted(name, kind, steps=7, grid=grid)
    process = process_of(kind)
    assert len(set(noisy.t.tolist())) == 3
    assert len(asked) == 7 * (2 if name == "renoise_inversion" else 1), "one batched evaluation each"
    assert all(t.shape == (6,) for t in asked)
    tau = implied_noise(noisy.x_t, x0, noisy.t, process)
    torch.testing.assert_close(process.target(x0, tau, noisy.t), noisy.target, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(process.add_noise(x0, tau, noisy.t), noisy.x_t, rtol=1e-12, atol=1e-12)
    assert noisy.x_t.isfinite().all()
    assert not noisy.x_t.requires_grad
    assert all((t <= noisy.t).all() for t in asked), "no question beyond t"


@pytest.mark.parametrize("name", NAMES)
def test_a_row_does_not_depend_on_its_batch(name: str) -> None:
    x0, noisy, _ = corrupted(name, "eps", **({"eta": 0.5} if name == "ddim_inversion" else {}))
    units = noisy.units[2:4]
    corruptor = corruptors.get(name)(**({"eta": 0.5} if name == "ddim_inversion" else {}))
    alone = corruptor(x0[2:4], units, vp(), Uniform(), stub)
    torch.testing.assert_close(alone.x_t, noisy.x_t[2:4], rtol=0, atol=0)
    torch.testing.assert_close(alone.target, noisy.target[2:4], rtol=0, atol=0)


def test_one_step_by_hand() -> None:
    """From the clean picture one step has r = 0, so that tau is what the network said at time 0."""
    x0 = torch.randn(2, 4, 4, 4, dtype=torch.float64)
    noisy = DDIMInversion(steps=1)(x0, [5, 6], vp(), Uniform(), stub)
    torch.testing.assert_close(noisy.target, stub(x0, torch.zeros(2)))
    late = DDIMInversion(steps=1, ask_at="end")(x0, [5, 6], vp(), Uniform(), stub)
    torch.testing.assert_close(late.target, stub(x0, late.t))


def test_flow_is_euler_along_the_ode() -> None:
    x0, noisy, _ = corrupted("ddim_inversion", "flow", grid="own", steps=4)
    t = noisy.t.view(-1, 1, 1, 1)
    x = x0
    for k in range(4):
        x = x + t / 4 * stub(x, noisy.t * k / 4)
    torch.testing.assert_close(x, noisy.x_t, rtol=1e-6, atol=1e-6)  # t is float32


def test_v_is_a_rotation() -> None:
    """x' = cos(d) x + sin(d) v, with d the angle between the levels (arXiv:2202.00512, appendix D)."""
    x0 = torch.randn(1, 4, 4, 4, dtype=torch.float64)
    noisy = DDIMInversion(steps=2)(x0, [5], vp("v"), Discrete(steps=(699,)), stub)
    angle = [0.0] + [float(torch.arccos(ALPHAS[i].sqrt())) for i in (499, 699)]
    x = x0
    for k, asked in enumerate((0, 499)):
        d = torch.tensor(angle[k + 1] - angle[k], dtype=torch.float64)
        x = d.cos() * x + d.sin() * stub(x, torch.tensor([asked]))
    torch.testing.assert_close(x, noisy.x_t)


@pytest.mark.parametrize("kind", ["eps", "v", "flow"])
def test_converges_to_the_ode_and_renoise_faster(kind: str) -> None:
    """Gaussian data of s.d. c have a linear network and a known path: x_t = x0 sqrt(a^2 c^2 + s^2) / c."""
    process, c = process_of(kind), 0.6
    x0 = torch.randn(2, 4, 4, 4, dtype=torch.float64)

    def predict(x: Tensor, t: Tensor) -> Tensor:
        a, s = (v.view(-1, 1, 1, 1).double() for v in process.coefficients(t))
        spread = (a * c).square() + s.square()
        return process.target(a * c**2 * x / spread, s * x / spread, t)

    def distance(name: str, steps: int) -> float:
        noisy = corruptors.get(name)(steps=steps)(x0, [1, 1], process, Discrete(steps=(699,)), predict)
        a, s = (v.view(-1, 1, 1, 1).double() for v in process.coefficients(noisy.t))
        true = x0 * ((a * c).square() + s.square()).sqrt() / c
        return float((noisy.x_t - true).abs().max())

    coarse, fine = distance("ddim_inversion", 25), distance("ddim_inversion", 100)
    assert fine < 0.4 * coarse
    assert distance("renoise_inversion", 25) < 0.3 * coarse


def test_steps_beyond_the_highest_time_are_left_out() -> None:
    t = torch.tensor([10, 250])
    grid = exact_grid(t, 10, vp(), own=False, ask_at="start", highest=0.3)
    assert len(grid.start) == 3
    assert grid.end[-1].tolist() == [10, 250]
    assert grid.active.tolist() == [[True, True], [False, True], [False, True]]
    assert grid.start[:, 1].tolist() == [-1, 99, 199]
    low = exact_grid(t, 10, vp(), own=False, ask_at="start", highest=0.2)
    assert low.end[-1].tolist() == [10, 250], "whatever is left out, every row lands"
    assert Discrete(steps=(100, 499)).highest == pytest.approx(0.4995)
    assert LogitNormal().highest == 1.0


def test_eta_is_seeded_by_row_and_spares_level_and_first_step() -> None:
    _, plain, _ = corrupted("ddim_inversion", "eps")
    _, noisy, _ = corrupted("ddim_inversion", "eps", eta=1.0)
    _, again, _ = corrupted("ddim_inversion", "eps", eta=1.0)
    torch.testing.assert_close(noisy.x_t, again.x_t, rtol=0, atol=0)
    change = noisy.target - plain.target
    assert change[0].abs().max() > 0
    assert not torch.allclose(change[0], change[1]), "the images of a pair have noise of their own"
    clean = posterior_std(vp(), torch.tensor([300]), torch.tensor([-1]), plain.x_t)
    assert clean.item() == 0


def test_posterior_std_is_that_of_ddim() -> None:
    """arXiv:2010.02502, eq. 16 with eta = 1, by hand."""
    a, b = ALPHAS[300], ALPHAS[200]
    std = posterior_std(vp(), torch.tensor([300]), torch.tensor([200]), torch.zeros(1, 1, 1, 1).double())
    assert std.item() == pytest.approx(float(((1 - b) / (1 - a) * (1 - a / b)).sqrt()))


@pytest.mark.parametrize("name", NAMES)
def test_zero_terminal_snr(name: str) -> None:
    process = Process(prediction="v", alphas_cumprod=torch.cat([ALPHAS[:-1], torch.zeros(1).double()]))
    x0 = torch.randn(2, 4, 4, 4, dtype=torch.float64)
    noisy = corruptors.get(name)()(x0, [1, 2], process, Discrete(steps=(999,)), stub)
    assert noisy.x_t.isfinite().all()
    assert noisy.target.isfinite().all()


def test_options() -> None:
    assert set(NAMES) | {"shared_noise", "independent_noise"} <= set(corruptors.names())
    corruptor = DDIMInversion(network="reference")
    assert corruptor.asks == "reference"
    assert corruptors.get("shared_noise")().asks is None
    assert "flow" in corruptor.derived
    assert "eps" not in corruptor.derived
    with pytest.raises(ValueError, match="asks the reference"):
        corruptor(torch.zeros(1, 4, 4, 4), [1], vp(), Uniform())
    with pytest.raises(ValueError, match="steps is 0"):
        RenoiseInversion(steps=0)
    with pytest.raises(ValueError, match="eta is -1"):
        replace(corruptor, eta=-1.0)
    with pytest.raises(ValueError, match="has 1000 times"):
        DDIMInversion(steps=2000).check(vp())
