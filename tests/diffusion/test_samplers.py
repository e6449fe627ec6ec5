"""One step of every sampler: golden numbers, replay, conventions, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from diffalign.diffusion.process import Prediction, Process
from diffalign.diffusion.samplers import Sampler, Step
from diffalign.diffusion.schedule import Schedule, flow_schedule, pipeline_schedule, vp_schedule
from diffalign.diffusion.transitions import (
    TRANSITIONS,
    Cps,
    DanceSde,
    Ddim,
    Dpm2,
    FlowSde,
    LiteralDdim,
    Ode,
)

FOLDER = Path(__file__).parents[1] / "golden" / "online"
FLOW = Process(prediction="flow")
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
NEAR_DETERMINISTIC = {"rtol": 5e-3, "atol": 1e-5}
"""For gradients of log-probabilities where std is almost 0."""


def golden(name: str) -> dict[str, Tensor]:
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        return {k: torch.as_tensor(file[k]) for k in file.files}


def check(sampler: Sampler, d: dict[str, Tensor], key: str, i: Tensor, pred: Tensor, gradient: str) -> Step:
    """Draw with the recorded noise, replay the recorded x', and compare everything with the file."""
    n = len(i)
    x, noise = d["sample"][:n], d["noise"][:n]
    leaf = pred[:n].clone().requires_grad_(True)
    wanted = d[f"{key}prev_sample"] if f"{key}prev_sample" in d else d[f"{key}prev"]
    drawn = sampler.step(leaf, x, i, noise=noise)
    torch.testing.assert_close(drawn.x, wanted, **CLOSE)
    assert not drawn.x.requires_grad
    replayed = sampler.step(leaf, x, i, wanted)
    assert replayed.logp is not None
    torch.testing.assert_close(replayed.logp, d[f"{key}log_prob"], rtol=1e-4, atol=1e-4)
    (found,) = torch.autograd.grad((d["weights"][:n] * replayed.logp).sum(), leaf)
    torch.testing.assert_close(found, d[key + gradient], **NEAR_DETERMINISTIC)
    for name, value in (("prev_mean", replayed.mean), ("mean", replayed.mean), ("pred_x0", replayed.x0_hat)):
        if key + name in d:
            torch.testing.assert_close(value.detach(), d[key + name], **CLOSE)
    return replayed


def ddim_sampler(d: dict[str, Tensor], prediction: Prediction, eta: float) -> tuple[Sampler, Tensor]:
    times = d["timesteps_20"].tolist()
    process = Process(prediction=prediction, alphas_cumprod=d["alphas_cumprod"])
    sampler = Sampler(Ddim(eta=eta), process, vp_schedule(process, times, 50))
    return sampler, torch.tensor([times.index(t) for t in d["timestep"].tolist()])


@pytest.mark.parametrize("eta", [1.0, 0.5])
@pytest.mark.parametrize(("prediction", "name"), [("eps", "epsilon"), ("v", "v_prediction")])
def test_ddim(prediction: Prediction, name: str, eta: float) -> None:
    d, key = golden("ddim_logprob"), f"{name}_eta{eta}_"
    sampler, i = ddim_sampler(d, prediction, eta)
    step = check(sampler, d, key, i, d["model_output"], "grad_model_output")
    torch.testing.assert_close(step.std, d[f"{key}std"], **CLOSE)
    moved = sampler.step(d["model_output_perturbed"], d["sample"], i, d[f"{key}prev_sample"]).logp
    torch.testing.assert_close(moved, d[f"{key}log_prob_perturbed"], rtol=1e-4, atol=1e-4)


def test_standard_deviations_of_whole_schedules() -> None:
    d = golden("ddim_sigma_tables")
    process = Process(prediction="eps", alphas_cumprod=golden("ddim_logprob")["alphas_cumprod"])
    twenty = Sampler(Ddim(), process, vp_schedule(process, d["t20"].flip(0).tolist(), 50))
    torch.testing.assert_close(twenty.std.flip(0).float(), d["lpo20"], **CLOSE)
    fifty = vp_schedule(process, list(range(981, 0, -20)), 20)
    variance = dict(zip(fifty.times.tolist(), Sampler(Ddim(), process, fifty).std.square(), strict=True))
    found = torch.stack([variance[t] for t in d["dpok50_t"].tolist()])
    torch.testing.assert_close(found.float(), d["dpok50_var"], **CLOSE)


def test_the_last_step_ends_at_the_first_timestep_or_clean() -> None:
    process = Process(prediction="eps", alphas_cumprod=golden("ddim_logprob")["alphas_cumprod"])
    times = [951, 451]
    first, clean = (
        Sampler(Ddim(), process, vp_schedule(process, times, 500, final)) for final in ("first", "clean")
    )
    assert first.stochastic == [0, 1]
    assert clean.stochastic == [0]
    torch.testing.assert_close(first.std[0], clean.std[0])
    x = torch.ones(1, 2, 3, 3)
    last = clean.step(0.1 * x, x, 1)
    assert last.logp is None
    torch.testing.assert_close(last.x, last.x0_hat)


FLOW_CASES = [
    (FlowSde(noise_level=0.7), "flowsde_nl0.7_"),
    (FlowSde(noise_level=0.3), "flowsde_nl0.3_"),
    (Cps(noise_level=0.8), "cps_nl0.8_"),
]


@pytest.mark.parametrize(("transition", "key"), FLOW_CASES, ids=[key for _, key in FLOW_CASES])
def test_flow_sde_and_cps(transition: FlowSde | Cps, key: str) -> None:
    d = golden("flow_sde_logprob")
    sampler = Sampler(transition, FLOW, flow_schedule(d["sigmas_shift3_n10"]))
    step = check(sampler, d, key, d["step_index"], d["velocity"], "grad_velocity")
    torch.testing.assert_close(step.std / step.sqrt_dt, d[f"{key}std"], **CLOSE)
    moved = sampler.step(d["velocity_perturbed"], d["sample"], d["step_index"], d[f"{key}prev"])
    torch.testing.assert_close(moved.mean, d[f"{key}mean_perturbed"], **CLOSE)
    torch.testing.assert_close(moved.logp, d[f"{key}log_prob_perturbed"], rtol=1e-4, atol=1e-4)


def test_dance_sde() -> None:
    d = golden("flow_sde_logprob")
    sampler = Sampler(DanceSde(eta=0.3), FLOW, flow_schedule(d["dance_sigmas"]))
    check(sampler, d, "dance_eta0.3_", d["dance_step_index"], d["velocity"], "grad_velocity")
    moved = sampler.step(
        d["velocity_perturbed"][:4], d["sample"][:4], d["dance_step_index"], d["dance_eta0.3_prev"]
    )
    torch.testing.assert_close(moved.logp, d["dance_eta0.3_log_prob_perturbed"], rtol=1e-4, atol=1e-4)


def test_posterior_on_rectified_flow() -> None:
    d = golden("flow_sde_logprob")
    sampler = Sampler(Ddim(eta=0.7), FLOW, flow_schedule(d["sigmas_shift3_n10"]))
    step = sampler.step(d["velocity"][:4], d["sample"][:4], d["step_index"][:4], noise=d["noise"][:4])
    torch.testing.assert_close(step.mean, d["flowddim_eta07_mean"], **CLOSE)
    torch.testing.assert_close(step.x, d["flowddim_eta07_prev"], **CLOSE)
    torch.testing.assert_close(step.std, d["flowddim_eta07_std"], **CLOSE)


def test_literal_ddim_of_lpo_on_sd3() -> None:
    d = golden("lpo_sd3_step_selfderived")
    schedule = flow_schedule(d["sigmas"])
    sampler = Sampler(LiteralDdim(clamp=True), FLOW, schedule)
    step = check(sampler, d, "", d["step_index"], d["velocity"], "grad_velocity")
    torch.testing.assert_close(step.std, d["std"], **CLOSE)
    valid = d["radicand_all_steps"] >= 0
    assert valid.tolist() == [True] * 15 + [False] * 4 + [True], "of the file itself"
    torch.testing.assert_close(sampler.std[valid].float(), d["std_all_steps"][valid], **CLOSE)
    torch.testing.assert_close(sampler.std[~valid], schedule.noise[1:][~valid])
    posterior = Sampler(Ddim(), FLOW, schedule).std.float()
    torch.testing.assert_close(posterior, d["std_snr_posterior_all_steps"], **CLOSE)
    with pytest.raises(ValueError, match="no real mean from step 15 of 20"):
        Sampler(LiteralDdim(), FLOW, schedule)


def trajectory(transition: Ode | Dpm2, d: dict[str, Tensor]) -> Tensor:
    sampler, x, last = Sampler(transition, FLOW, flow_schedule(d["sigmas"])), d["z0"], None
    states = [x]
    for i, sigma in enumerate(d["sigmas"][:-1]):
        v = (x.flatten(1) @ d["A"].T).view_as(x) * (0.5 + sigma) + 0.1 * sigma
        step = sampler.step(v, x, i, last_x0=last)
        assert step.logp is None
        x, last = step.x, step.x0_hat
        states.append(x)
    return torch.stack(states, 1)


def test_deterministic_solvers() -> None:
    d = golden("flow_solver_traj")
    torch.testing.assert_close(trajectory(Ode(), d), d["euler"], **CLOSE)
    torch.testing.assert_close(trajectory(Ode(), d), d["dpm1"], **CLOSE)
    torch.testing.assert_close(trajectory(Dpm2(), d), d["dpm2"], **CLOSE)


def test_the_second_order_solver_is_of_second_order() -> None:
    """Of x0 ~ N(1, 0.5^2): x at sigma has the exact score, and its flow an exact answer."""

    def error(transition: Ode | Dpm2, steps: int) -> float:
        sigmas = torch.linspace(0.9, 0.1, steps + 1, dtype=torch.float64)
        sampler = Sampler(transition, FLOW, flow_schedule(sigmas))
        x, last = torch.full((1, 1, 1), 1.3, dtype=torch.float64), None
        spread = lambda s: ((1 - s) ** 2 * 0.25 + s**2) ** 0.5  # noqa: E731
        exact = (1 - 0.1) + spread(0.1) * (1.3 - (1 - 0.9)) / spread(0.9)
        for i, sigma in enumerate(sigmas[:-1].tolist()):
            x0 = 1 + 0.25 * (1 - sigma) / spread(sigma) ** 2 * (x - (1 - sigma))
            step = sampler.step((x - x0) / sigma, x, i, last_x0=last)
            x, last = step.x, step.x0_hat
        return abs(float(x) - exact)

    assert error(Ode(), 20) / error(Ode(), 40) == pytest.approx(2, rel=0.1)
    assert error(Dpm2(), 20) / error(Dpm2(), 40) > 3.2


def schedule_for(name: str) -> tuple[Process, Schedule]:
    if "sde" in name:
        return FLOW, flow_schedule([1.0, 0.7, 0.4, 0.1])
    process = Process(prediction="v", alphas_cumprod=torch.linspace(0.999, 0.01, 100))
    return process, vp_schedule(process, [75, 50, 25], 25)


@pytest.mark.parametrize("name", [n for n in TRANSITIONS if n not in ("ode", "dpm2")])
def test_a_drawn_step_replays_at_its_own_log_probability(name: str) -> None:
    process, schedule = schedule_for(name)
    sampler = Sampler(TRANSITIONS[name](), process, schedule)
    draw = torch.Generator().manual_seed(0)
    x, pred, noise = (torch.randn(3, 2, 4, 4, generator=draw) for _ in range(3))
    i = torch.tensor([0, 1, 2])
    drawn = sampler.step(pred, x, i, noise=noise)
    assert torch.equal(drawn.logp, sampler.step(pred, x, i, drawn.x).logp)
    if name != "cps":
        per = torch.distributions.Normal(drawn.mean, drawn.std.view(-1, 1, 1, 1)).log_prob(drawn.x)
        torch.testing.assert_close(drawn.logp, per.mean((1, 2, 3)))
    singly = [
        float(sampler.step(pred[k : k + 1], x[k : k + 1], k, drawn.x[k : k + 1]).logp) for k in range(3)
    ]
    assert drawn.logp.tolist() == pytest.approx(singly, rel=1e-6)


def test_candidates_share_one_mean() -> None:
    process, schedule = schedule_for("ddim")
    sampler = Sampler(Ddim(), process, schedule)
    x, pred = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    candidates = torch.randn(5, 3, 2, 4, 4)
    together = sampler.logp(candidates, sampler.step(pred, x, 1, candidates[0]).mean, 1)
    singly = torch.stack([sampler.step(pred, x, 1, c).logp for c in candidates])
    torch.testing.assert_close(together, singly)


def test_half_precision_is_scored_in_full() -> None:
    process, schedule = schedule_for("flow_sde")
    sampler = Sampler(FlowSde(), process, schedule)
    step = sampler.step(
        torch.ones(1, 2, 2, 2).bfloat16(), torch.ones(1, 2, 2, 2).bfloat16(), 0, torch.ones(1, 2, 2, 2)
    )
    assert step.logp.dtype == step.mean.dtype == torch.float32


def test_steps_outside_the_stochastic_ones_are_the_ode() -> None:
    process, schedule = schedule_for("flow_sde")
    sampler = Sampler(FlowSde(), process, schedule, stochastic=[1])
    x, v = torch.randn(2, 2, 3, 3), torch.randn(2, 2, 3, 3)
    step = sampler.step(v, x, 0)
    assert step.logp is None
    torch.testing.assert_close(step.x, x - 0.3 * v)
    assert sampler.stochastic == [1]
    with pytest.raises(ValueError, match=r"steps \[0\] are deterministic: .* replay only those of \[1\]"):
        sampler.step(v, x, torch.tensor([0, 1]), x)
    with pytest.raises(ValueError, match=r"steps \[0\] are deterministic"):
        sampler.logp(x, v, 0)
    with pytest.raises(ValueError, match="needs noise"):
        sampler.step(v, x, 1)
    solver = Sampler(FlowSde(), process, schedule, stochastic=[0], otherwise=Dpm2())
    with pytest.raises(ValueError, match="needs last_x0"):
        Sampler(Ode(), process, flow_schedule([0.9, 0.6, 0.3, 0.1]), [], otherwise=Dpm2()).step(v, x, 1)
    assert solver.stochastic == [0]


def test_what_does_not_fit_is_refused() -> None:
    process = Process(prediction="eps", alphas_cumprod=torch.linspace(0.999, 0.0, 100))
    with pytest.raises(ValueError, match="flow_sde is for rectified flow; take ddim"):
        Sampler(FlowSde(), process, vp_schedule(process, [50], 50))
    with pytest.raises(ValueError, match="no x0_hat at pure noise"):
        Sampler(Ddim(), process, vp_schedule(process, [99], 50))
    with pytest.raises(ValueError, match="rectified flow takes flow_schedule"):
        vp_schedule(FLOW, [50], 50)
    with pytest.raises(ValueError, match="must fall from noise to picture"):
        flow_schedule([0.0, 1.0])
    for kind, options in ((Ddim, {"eta": 2.0}), (Cps, {"noise_level": -0.1})):
        with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
            kind(**options)
    for kind, option in ((FlowSde, "noise_level"), (DanceSde, "eta"), (LiteralDdim, "eta")):
        with pytest.raises(ValueError, match=f"transition.{option} is -1.0; it must be 0 or more"):
            kind(**{option: -1.0})


def test_schedules_of_pipelines() -> None:
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    sigmas = golden("flow_sde_logprob")["sigmas_shift3_n10"]
    flow = pipeline_schedule(FlowMatchEulerDiscreteScheduler(shift=3.0), FLOW, 10)
    torch.testing.assert_close(flow.noise.float(), sigmas)
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", steps_offset=1, set_alpha_to_one=False)
    process = Process(prediction="eps", alphas_cumprod=scheduler.alphas_cumprod)
    vp = pipeline_schedule(scheduler, process, 20)
    assert vp.times.tolist() == golden("ddim_logprob")["timesteps_20"].tolist()
    assert vp.noise[-1] > 0
    assert pipeline_schedule(scheduler, process, 20, "clean").noise[-1] == 0
