"""DiffusionNFT, AWM, DGPO and CRD on the numbers of the published implementations, and by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from diffalign.diffusion.process import Process
from diffalign.diffusion.spaces import native_error
from diffalign.objectives import Denoised, Predictions
from diffalign.objectives.awm import likelihood
from diffalign.objectives.blend import BLENDS, Blend
from diffalign.objectives.nft import optimality
from diffalign.objectives.steps import build_online
from tests.objectives.online import CLOSE, check_gradient, golden, rollouts

ROWS = torch.arange(6)


def leaf(d: dict[str, Tensor]) -> Tensor:
    return d["v"].clone().requires_grad_(True)


# ---------------------------------------------------------------------- DiffusionNFT


@pytest.mark.parametrize("mode", ["all", "positive_only", "negative_only", "one_only", "binary"])
def test_nft_optimality(mode: str) -> None:
    d = golden("nft_loss")
    torch.testing.assert_close(optimality(d["advantages"], 5.0, mode), d[f"r_{mode}"])


@pytest.mark.parametrize("mode", ["all", "binary"])
@pytest.mark.parametrize("beta", [1.0, 0.1])
def test_nft(beta: float, mode: str) -> None:
    d, key = golden("nft_loss"), f"beta{beta:g}_{mode}_"
    v = leaf(d)
    loss, metrics = build_online("nft", beta=beta, mode=mode).loss(rollouts(d, v, ROWS))
    torch.testing.assert_close(loss.mean().double(), d[f"{key}loss"], **CLOSE)
    check_gradient(loss.mean(), v, d[f"{key}grad_v"])
    for name, wanted in (("positive", "pos"), ("negative", "neg")):
        torch.testing.assert_close(metrics[name].double(), d[f"{key}{wanted}_per_sample"], **CLOSE)
    torch.testing.assert_close(metrics["kl"].mean(), d[f"{key}kl"], **CLOSE)
    free = build_online("nft", beta=beta, mode=mode, kl=0.0)
    assert not free.needs_reference
    without = replace(rollouts(d, v, ROWS), tensors=replace(rollouts(d, v, ROWS).tensors, ref_pred=None))
    torch.testing.assert_close(free.loss(without)[0].mean().double(), d[f"{key}policy_loss"], **CLOSE)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_nft_on_vp_models_is_the_same_in_x0(prediction: str) -> None:
    """The slope turns errors of any prediction into those of x0_hat: eps and v models agree."""
    process = Process(prediction=prediction, alphas_cumprod=torch.linspace(0.99, 0.1, 10).double())
    draw = torch.Generator().manual_seed(0)
    x0, noise, x0_hat, x0_old = (torch.randn(4, 2, 3, 3, generator=draw).double() for _ in range(4))
    t = torch.tensor([0, 3, 6, 9])
    x_t, as_x0 = process.add_noise(x0, noise, t), replace(process, prediction="x0")
    pred, old = (as_x0.convert(x, x_t, t, prediction) for x in (x0_hat, x0_old))
    target = process.target(x0, noise, t)
    batch = Denoised(
        error=native_error(pred, target), ref_error=None, group=torch.arange(4), role=torch.zeros(4).long(),
        t=t, score=torch.tensor([1.0, -1.0, 3.0, 0.0]).double(),
        extra={"x0_slope": process.weight(t, "x0_equivalent").sqrt()},
        tensors=Predictions(pred=pred, ref_pred=None, target=target, x_t=x_t, x0=x0, old_pred=old),
    )  # fmt: skip
    plain = Predictions(pred=x0_hat, ref_pred=None, target=x0, x_t=x_t, x0=x0, old_pred=x0_old)
    direct = replace(batch, tensors=plain, extra={"x0_slope": torch.ones(4).double()})
    losses = [build_online("nft", kl=0.0).loss(b)[0] for b in (batch, direct)]
    torch.testing.assert_close(losses[0], losses[1])


def test_nft_moves_to_good_images_and_away_from_bad_ones() -> None:
    d = golden("nft_loss")
    v = d["v_old"].clone().requires_grad_(True)
    for score, sign in ((5.0, 1), (-5.0, -1)):
        batch = replace(rollouts(d, v, ROWS), score=torch.full((6,), score))
        (gradient,) = torch.autograd.grad(build_online("nft", kl=0.0).loss(batch)[0].sum(), v)
        assert (sign * (gradient * (v - (d["noise"] - d["x0"])).detach()).sum((1, 2, 3)) > 0).all()


def test_blends() -> None:
    d = golden("nft_loss")
    names = {
        "type0": "copy", "type1": "nft", "type2": "nft_late",
        "type4_crd": "crd_fast", "type5_crd": "crd_half", "type6_crd": "crd_sampling",
    }  # fmt: skip
    for key, name in names.items():
        found = [BLENDS[name].decay(n) for n in d["decay_steps"].tolist()]
        assert found == pytest.approx(d[f"decay_{key}"].tolist())
    assert [BLENDS["crd_old"].decay(n) for n in (0, 10, 1000)] == pytest.approx([0.25, 0.3, 0.999])
    assert [BLENDS["dgpo"].decay(n) for n in (0, 100, 1000)] == pytest.approx([0.0, 0.1, 0.3])
    with pytest.raises(ValueError, match="0 <= first <= most < 1"):
        Blend(most=1.0)


# ---------------------------------------------------------------------- AWM

FORMS = {"uniform": "Uniform", "t": "t", "t2": "t2", "huber": "huber", "ghuber": "ghuber"}


@pytest.mark.parametrize("kind", list(FORMS))
def test_awm(kind: str) -> None:
    d, key = golden("awm_loss"), f"w_{FORMS[kind]}_"
    v = leaf(d)
    batch = rollouts(d, v, ROWS)
    torch.testing.assert_close(batch.tensors.target, d["target"])
    torch.testing.assert_close(likelihood(kind, batch.error.detach(), d["t"]), d[f"{key}logp"], **CLOSE)
    torch.testing.assert_close(
        likelihood(kind, batch.extra["old_error"], d["t"]), d[f"{key}logp_old"], **CLOSE
    )
    objective = build_online("awm", likelihood=kind, clip=0.01, adv_max=5.0, kl=0.0, ema_kl=0.0)
    assert objective.needs == {"score", "old_error"}
    loss = objective.loss(batch)[0].mean()
    torch.testing.assert_close(loss, d[f"{key}loss"], **CLOSE)
    check_gradient(loss, v, d[f"{key}grad_v"])
    on_policy = replace(batch, extra={"old_error": batch.error.detach()})
    check_gradient(objective.loss(on_policy)[0].mean(), v, d[f"{key}onpolicy_grad_v"])


def test_awm_distances() -> None:
    d = golden("awm_loss")
    batch = rollouts(d, d["v"], ROWS, ema_pred=d["v_old"])
    plain = build_online("awm", kl=0.0, ema_kl=0.0).loss(batch)[0]
    to_ref = build_online("awm", kl=0.5, ema_kl=0.0).loss(batch)
    torch.testing.assert_close(to_ref[1]["kl"].mean(), d["v_kl"], **CLOSE)
    torch.testing.assert_close(to_ref[0] - plain, 0.5 * to_ref[1]["kl"], rtol=1e-4, atol=1e-6)
    to_ema = build_online("awm", kl=0.0, ema_kl=2.0).loss(batch)
    torch.testing.assert_close(to_ema[0] - plain, 2 * native_error(d["v"], d["v_old"]), rtol=1e-4, atol=1e-6)
    assert build_online("awm").needs == {"score", "old_error", "tensors", "ref_pred", "ema_pred"}


def test_awm_takes_steps_of_vp_models_as_shares() -> None:
    d = golden("awm_loss")
    t = torch.tensor([980, 800, 600, 400, 200, 50])
    for one, other in ((t, t / 1000),):
        losses = [
            build_online("awm", likelihood="t", kl=0.0, ema_kl=0.0).loss(
                replace(rollouts(d, d["v"], ROWS), t=x)
            )
            for x in (one, other)
        ]
        torch.testing.assert_close(losses[0][0], losses[1][0])


# ---------------------------------------------------------------------- DGPO


@pytest.mark.parametrize(("key", "beta", "clip"), [("b100_", 100.0, 0.0), ("b10clip_", 10.0, 0.01)])
def test_dgpo(key: str, beta: float, clip: float) -> None:
    d = golden("dgpo_loss")
    v = leaf(d)
    objective = build_online("dgpo", beta=beta, clip=clip, kl=0.0)
    loss, metrics = objective.loss(rollouts(d, v, d["group_id"]))
    torch.testing.assert_close(loss.mean(), d[f"{key}loss"], **CLOSE)
    check_gradient(loss.mean(), v, d[f"{key}grad_v"])
    share = d["advantages"].clamp(-5, 5) * beta * metrics["gap"] / int(d["group_size"])
    torch.testing.assert_close(share, d[f"{key}per_sample"], **CLOSE)
    if clip:
        assert torch.equal(metrics["frozen"].bool(), d[f"{key}should_clip"])


def test_dgpo_by_hand() -> None:
    """Two images: gaps 0.1 and -0.1, A = 1 and -1, beta 10: both drive the group's weight to sigma(1)."""
    error = torch.tensor([0.6, 0.4], dtype=torch.float64, requires_grad=True)
    batch = Denoised(
        error=error, ref_error=torch.full((2,), 0.5).double(), group=torch.tensor([7, 7]),
        role=torch.zeros(2).long(), t=torch.full((2,), 0.5), score=torch.tensor([1.0, -1.0]).double(),
    )  # fmt: skip
    objective = build_online("dgpo", beta=10.0, clip=0.0, kl=0.0)
    loss = objective.loss(batch)[0]
    w = 1 / (1 + math.exp(-1))
    assert loss.tolist() == pytest.approx([0.6 * w, -0.4 * w])
    assert torch.autograd.grad(loss.sum(), error)[0].tolist() == pytest.approx([w, -w])
    assert objective.whole_groups
    with pytest.raises(ValueError, match="no ref_error"):
        objective.loss(replace(batch, ref_error=None))
    with pytest.raises(ValueError, match=r"no extra\['old_error'\]"):
        build_online("dgpo", kl=0.0).loss(batch)


# ---------------------------------------------------------------------- CRD


@pytest.mark.parametrize("centre", ["uniform", "hard", "T0.5"])
@pytest.mark.parametrize("match", ["mse", "bce"])
@pytest.mark.parametrize("size", ["adaptive", "plain"])
def test_crd(size: str, match: str, centre: str) -> None:
    d, key = golden("crd_loss"), f"{size}_{match}_{centre}_"
    v = leaf(d)
    objective = build_online(
        "crd", beta=float(d["crd_beta"]), adaptive=size == "adaptive", match=match, kl=0.0,
        centre="softmax" if centre == "T0.5" else centre,
    )  # fmt: skip
    loss, metrics = objective.loss(rollouts(d, v, torch.zeros(6).long()))
    torch.testing.assert_close(metrics["reward"], d["adv01"])
    torch.testing.assert_close(metrics["implicit_reward"].double(), d[f"r_theta_{size}"].double(), **CLOSE)
    torch.testing.assert_close(loss.mean().double(), d[f"{key}policy_loss"].double(), **CLOSE)
    torch.testing.assert_close(0.7 / 5 * loss.mean().double(), d[f"{key}loss"].double(), **CLOSE)
    check_gradient(loss.mean(), v, d[f"{key}grad_v"], 5e-4)


def test_crd_distance() -> None:
    d = golden("crd_loss")
    batch = rollouts(d, d["v"], torch.zeros(6).long())
    with_kl = build_online("crd", kl=float(d["kl_beta"])).loss(batch)
    without = build_online("crd", kl=0.0).loss(batch)[0]
    torch.testing.assert_close(with_kl[0] - without, 0.1 * with_kl[1]["kl"], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(0.1 * with_kl[1]["kl"].mean(), d["adaptive_kl"], **CLOSE)


def test_crd_centres_each_prompt_on_its_own() -> None:
    d = golden("crd_loss")
    group = torch.tensor([0, 1, 0, 1, 0, 1])
    for centre in ("uniform", "softmax", "hard"):
        objective = build_online("crd", centre=centre, kl=0.0)
        whole = objective.loss(rollouts(d, d["v"], group))[0]
        for g in (0, 1):
            own = {k: v[group == g] if v.ndim and len(v) == 6 else v for k, v in d.items()}
            alone = objective.loss(rollouts(own, own["v"], group[group == g]))[0]
            torch.testing.assert_close(whole[group == g], alone)
