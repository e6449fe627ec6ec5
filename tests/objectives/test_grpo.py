"""GRPO, DDPO, GRPO-Guard, Flow-DPPO and DPOK on one Flow-SDE step of the published implementations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from diffalign.diffusion.process import Process
from diffalign.diffusion.samplers import Sampler
from diffalign.diffusion.schedule import flow_schedule
from diffalign.diffusion.transitions import FlowSde
from diffalign.objectives.forward_process import mean_square
from diffalign.objectives.steps import OnlineObjective, Steps, build_online
from tests.objectives.online import CLOSE, check_gradient, golden, loss_of, steps_of


def batch_of(d: dict[str, Tensor], v: Tensor) -> Steps:
    """What the trainer makes of a rollout: one step replayed under policy, old policy and reference."""
    schedule = flow_schedule([1.0, float(d["sigma"]), float(d["sigma_next"])])
    sampler = Sampler(FlowSde(noise_level=float(d["noise_level"])), Process(prediction="flow"), schedule)
    new, old, ref = (sampler.step(u, d["x_t"], 1, d["prev_sample"]) for u in (v, d["v_old"], d["v_ref"]))
    torch.testing.assert_close(old.logp, d["log_prob_old"], **CLOSE)
    torch.testing.assert_close(new.logp.detach(), d["log_prob"], **CLOSE)
    torch.testing.assert_close(new.mean.detach(), d["mean_new"], **CLOSE)
    return Steps(
        logp=new.logp, old_logp=old.logp, ref_logp=ref.logp, advantage=d["advantages"],
        group=torch.zeros(6).long(), role=torch.zeros(6).long(), std=new.std, sqrt_dt=new.sqrt_dt,
        drift=mean_square(new.mean - old.mean), ref_drift=mean_square(new.mean - ref.mean),
        pred_drift=mean_square(v - d["v_ref"]),
    )  # fmt: skip


def tau() -> float:
    return float(golden("grpo_losses")["dppo_threshold"])


CASES = {
    "grpo_c1e-2": ("grpo", {"clip": 1e-2}),
    "grpo_c1e-4": ("grpo", {"clip": 1e-4}),
    "guard_c1e-2": ("grpo_guard", {"clip": 1e-2}),
    "guard_c1e-4": ("grpo_guard", {"clip": 1e-4}),
    "dppo": ("flow_dppo", {"tau": tau()}),
    "dpok": ("dpok", {"clip": 1e-2}),
}


@pytest.mark.parametrize("key", list(CASES))
def test_published_losses(key: str) -> None:
    d = golden("grpo_losses")
    name, options = CASES[key]
    v = d["v_new"].clone().requires_grad_(True)
    loss, metrics = build_online(name, **options).loss(batch_of(d, v))
    torch.testing.assert_close(loss.mean(), d[f"{key}_loss"], **CLOSE)
    check_gradient(loss.mean(), v, d[f"{key}_grad_v"], 5e-4)
    if f"{key}_clipfrac" in d:
        assert float(metrics["clipped"].mean()) == pytest.approx(float(d[f"{key}_clipfrac"]))
        torch.testing.assert_close(metrics["approx_kl"].mean(), d["approx_kl_half_sq"], **CLOSE)
    if f"{key}_ratio_mean" in d:
        assert float(metrics["ratio"].mean()) == pytest.approx(float(d[f"{key}_ratio_mean"]), rel=1e-4)


def test_flow_dppo_masks_as_published() -> None:
    d = golden("grpo_losses")
    metrics = build_online("flow_dppo", tau=tau()).loss(batch_of(d, d["v_new"]))[1]
    torch.testing.assert_close(metrics["kl_old"], d["dppo_kl_per_sample"], rtol=1e-4, atol=1e-9)
    assert float(metrics["masked"].mean()) == pytest.approx(float(d["dppo_masked_fraction"]))


def test_the_parts_of_dpok() -> None:
    d = golden("grpo_losses")
    batch = batch_of(d, d["v_new"])
    gain, distance = (build_online("dpok", clip=1e-2, **{k: 0.0}) for k in ("kl_weight", "reward_weight"))
    torch.testing.assert_close(gain.loss(batch)[0].mean(), d["dpok_pg"], **CLOSE)
    torch.testing.assert_close(distance.loss(batch)[0].mean(), d["dpok_kl"], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(("scale", "key"), [("rate", "kl_flowgrpo"), ("exact", "kl_exact_per_dim")])
def test_kl_to_the_reference(scale: str, key: str) -> None:
    d = golden("grpo_losses")
    v = d["v_new"].clone().requires_grad_(True)
    batch = batch_of(d, v)
    whole, plain = (build_online("grpo", kl=kl, kl_scale=scale) for kl in (1.0, 0.0))
    assert whole.needs_reference
    assert not plain.needs_reference
    kl = (whole.loss(batch)[0] - plain.loss(batch)[0]).mean()
    torch.testing.assert_close(whole.loss(batch)[1]["kl"].mean(), d[key], rtol=1e-4, atol=1e-9)
    check_gradient(kl, v, d[f"{key}_grad_v"], 5e-3)


# ---------------------------------------------------------------------- by hand


def test_ddpo_by_hand() -> None:
    """Ratios e^0.1 and e^-0.1 at clip 0.05: the bound holds where the step went the advantage's way."""
    batch = steps_of([0.1, 0.1, -0.1, -0.1], [2.0, -2.0, 2.0, -9.0])
    loss, gradient, metrics = loss_of(build_online("ddpo", clip=0.05), batch)
    up, down = 2.718281828459045**0.1, 2.718281828459045**-0.1
    assert loss == pytest.approx([-2 * 1.05, 2 * up, -2 * down, 5 * 0.95])
    assert gradient.tolist() == pytest.approx([0.0, 2 * up, -2 * down, 0.0])
    assert metrics["clipped"].tolist() == [1.0] * 4
    assert metrics["approx_kl"].tolist() == pytest.approx([0.005] * 4)


def test_dpok_has_no_pessimistic_bound() -> None:
    """Outside of the clamp no step has a gradient, whichever way it went."""
    batch = replace(steps_of([0.1, 0.1, -0.1], [1.0, -1.0, 1.0]), pred_drift=torch.zeros(3).double())
    loss, gradient, _ = loss_of(build_online("dpok", clip=0.05), batch)
    assert loss == pytest.approx([-105.0, 105.0, -95.0])
    assert gradient.tolist() == [0.0] * 3


def test_guard_takes_the_drift_away() -> None:
    """A pure drift of the mean, which lowers every log-ratio by drift / (2 std^2), leaves the ratio at 1."""
    std, drift, root = 0.5, 0.02, 0.1
    given = {
        k: torch.full((1,), v).double() for k, v in {"std": std, "drift": drift, "sqrt_dt": root}.items()
    }
    batch = steps_of([-drift / (2 * std**2)], [1.0], **given)
    loss, gradient, metrics = loss_of(build_online("grpo_guard"), batch)
    assert metrics["ratio"].tolist() == pytest.approx([1.0])
    assert loss == pytest.approx([-1 / root**2])
    assert gradient.tolist() == pytest.approx([-std / root**2])


def test_flow_dppo_masks_only_what_moves_away() -> None:
    given = {"std": torch.ones(4).double(), "drift": torch.full((4,), 0.04).double()}
    batch = steps_of([0.1, 0.1, -0.1, -0.1], [1.0, -1.0, 1.0, -1.0], **given)
    _, gradient, metrics = loss_of(build_online("flow_dppo", tau=0.01), batch)
    assert metrics["masked"].tolist() == [1.0, 0.0, 0.0, 1.0]
    assert (gradient != 0).tolist() == [False, True, True, False]
    assert loss_of(build_online("flow_dppo", tau=0.03), batch)[2]["masked"].sum() == 0


@pytest.mark.parametrize("name", ["ddpo", "grpo", "grpo_guard", "flow_dppo", "dpok"])
def test_at_the_old_policy_the_gradient_is_the_policy_gradient(name: str) -> None:
    given = {k: torch.ones(2).double() for k in ("std", "sqrt_dt")}
    given |= {k: torch.zeros(2).double() for k in ("drift", "pred_drift")}
    objective = build_online(name)
    _, gradient, _ = loss_of(objective, steps_of([0.3, 0.3], [2.0, -1.0], old=0.3, **given))
    factor = 100.0 if name == "dpok" else 1.0
    assert gradient.tolist() == pytest.approx([-2.0 * factor, 1.0 * factor])


@pytest.mark.parametrize("name", ["ddpo", "grpo", "grpo_guard", "flow_dppo", "dpok"])
def test_what_is_missing_is_named(name: str) -> None:
    given = {k: torch.ones(2) for k in ("std", "sqrt_dt", "drift", "pred_drift", "ref_drift")}
    whole = steps_of([0.0, 0.0], [1.0, 1.0], **given)
    objective: OnlineObjective = build_online(name, **({"kl": 0.1} if name.startswith("grpo") else {}))
    for need in objective.needs:
        with pytest.raises(ValueError, match=f"the batch has no {need}"):
            objective.loss(replace(whole, **{need: None}))
