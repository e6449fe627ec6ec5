"""LPO, SPO and D3PO: published numbers, candidates and mining, one pass for both sides."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from diffalign.diffusion.process import Process
from diffalign.diffusion.samplers import Sampler
from diffalign.diffusion.schedule import vp_schedule
from diffalign.diffusion.transitions import Ddim
from diffalign.objectives.mining import Threshold, mine
from diffalign.objectives.steps import Steps, build_online
from tests.objectives.online import CLOSE, check_gradient, golden, loss_of, steps_of

TIMES = list(range(951, 0, -50))
CASES = [("lpo", 500.0, "lpo_beta500_"), ("spo", 10.0, "spo_beta10_"), ("d3po", 0.1, "d3po_beta0.1_")]


def ddim() -> Sampler:
    process = Process(prediction="eps", alphas_cumprod=golden("ddim_logprob")["alphas_cumprod"])
    return Sampler(Ddim(), process, vp_schedule(process, TIMES, 50))


def index(timesteps: Tensor) -> Tensor:
    return torch.tensor([TIMES.index(t) for t in timesteps.tolist()])


def pair_batch(win: Tensor, lose: Tensor, ref_win: Tensor, ref_lose: Tensor) -> Steps:
    n = len(win)
    return Steps(
        logp=torch.cat([win, lose]), ref_logp=torch.cat([ref_win, ref_lose]),
        group=torch.arange(n).repeat(2), role=torch.tensor([1] * n + [-1] * n),
    )  # fmt: skip


def both_sides(d: dict[str, Tensor], pred: Tensor, dtype: torch.dtype) -> Steps:
    """One pass of policy and of reference, whose mean gives the log-probabilities of winner and loser."""
    sampler, i = ddim(), index(d["timestep"])
    x, sides = d["x_t"].to(dtype), torch.stack([d["x_win"], d["x_lose"]]).to(dtype)
    own, ref = (
        sampler.logp(sides, sampler.step(p.to(dtype), x, i, x).mean, i) for p in (pred, d["ref_model_output"])
    )
    return pair_batch(own[0], own[1], ref[0], ref[1])


@pytest.mark.parametrize(("name", "beta", "key"), CASES)
def test_published_losses(name: str, beta: float, key: str) -> None:
    """In float64: at beta 500 the margin is a difference of float32 log-probabilities times 500."""
    d = golden("lpo_step_loss")
    objective = build_online(name)
    assert objective.beta == beta
    pred = d["policy_model_output"].clone().requires_grad_(True)
    batch = both_sides(d, pred, torch.float64)
    loss, metrics = objective.loss(batch)
    names = ("logp_win", "logp_lose", "logp_ref_win", "logp_ref_lose")
    for found, wanted in zip([*batch.logp.view(2, 6), *batch.ref_logp.view(2, 6)], names, strict=True):
        torch.testing.assert_close(found.float(), d[key + wanted], rtol=1e-4, atol=1e-4)
    for side in ("win", "lose"):
        held = metrics[f"ratio_{side}"].clamp(0.9, 1.1).float()
        torch.testing.assert_close(held, d[f"{key}ratio_{side}"], **CLOSE)
    assert 0 < metrics["clipped"].sum() < 6
    torch.testing.assert_close(loss.mean().float(), d[f"{key}loss"], **CLOSE)
    check_gradient(loss.mean(), pred, d[f"{key}grad_policy_model_output"], 5e-3)


def test_the_formula_on_the_published_log_probabilities() -> None:
    d = golden("lpo_step_loss")
    for name, _, key in CASES:
        sides = [d[key + n] for n in ("logp_win", "logp_lose", "logp_ref_win", "logp_ref_lose")]
        loss = build_online(name).loss(pair_batch(*sides))[0]
        torch.testing.assert_close(loss.mean(), d[f"{key}loss"], **CLOSE)


def test_one_pass_equals_two() -> None:
    d, sampler = golden("lpo_step_loss"), ddim()
    i = index(d["timestep"])
    found = []
    for passes in (1, 2):
        pred = d["policy_model_output"].clone().requires_grad_(True)
        if passes == 1:
            batch = both_sides(d, pred, torch.float32)
        else:
            sides = [
                sampler.step(p, d["x_t"], i, d[k]).logp
                for p in (pred, d["ref_model_output"])
                for k in ("x_win", "x_lose")
            ]
            batch = pair_batch(*sides)
        loss = build_online("lpo").loss(batch)[0].mean()
        found.append((loss, torch.autograd.grad(loss, pred)[0]))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-6, atol=0)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-5, atol=1e-7)


def test_by_hand() -> None:
    """Log-ratios 0.02 and -0.03: z = beta 0.05; 0.2 is cut at ln 1.1 and has no gradient."""
    batch = replace(
        steps_of([0.02, -0.03, 0.2, 0.01], [0.0] * 4),
        ref_logp=torch.zeros(4).double(), group=torch.tensor([0, 0, 1, 1]), role=torch.tensor([1, -1, 1, -1]),
    )  # fmt: skip
    loss, gradient, metrics = loss_of(build_online("lpo", beta=10.0), batch)
    z = [0.5, 10 * (math.log(1.1) - 0.01)]
    assert loss == pytest.approx([math.log1p(math.exp(-a)) for a in z])
    factor = [10 / (1 + math.exp(a)) for a in z]
    assert gradient.tolist() == pytest.approx([-factor[0], factor[0], 0.0, factor[1]])
    assert metrics["clipped"].tolist() == [0.0, 1.0]
    weight = torch.tensor([1.0, 3.0, 5.0, 5.0])
    assert build_online("lpo").units(batch, weight).tolist() == [2.0, 5.0]
    level = replace(batch, logp=batch.ref_logp)
    assert build_online("d3po").loss(level)[0].tolist() == pytest.approx([math.log(2)] * 2)
    with pytest.raises(ValueError, match="no ref_logp"):
        build_online("lpo").loss(replace(batch, ref_logp=None))
    with pytest.raises(ValueError, match=r"spo\.clip is 0\.0; it must be in \(0, 1\)"):
        build_online("spo", clip=0.0)


# ---------------------------------------------------------------------- candidates and mining


def test_candidates() -> None:
    d, sampler = golden("lpo_candidates_and_mining"), ddim()
    for t in (951, 501, 1):
        i = TIMES.index(t)
        drawn = [sampler.step(d["cand_eps"], d["cand_x"], i, noise=z).x for z in d["cand_noise"]]
        torch.testing.assert_close(torch.stack(drawn), d[f"cand_t{t}"], **CLOSE)


@pytest.mark.parametrize("by", ["sigma", "variance", "linear"])
@pytest.mark.parametrize("low", [0.35, 0.45])
def test_thresholds_from_the_scheduler(by: str, low: float) -> None:
    """The published ones come from tables of four digits."""
    d = golden("lpo_candidates_and_mining")
    found = Threshold(low=low, high=low + 0.15, by=by).table(ddim().std).flip(0).float()
    digits = f"{round(low * 100):03d}_0{'5' if low == 0.35 else '6'}"
    torch.testing.assert_close(found, d[f"threshold_{by}_{digits}"], rtol=0, atol=5e-5)
    table = {"sigma": "sigma_tensor", "variance": "variance_tensor"}.get(by)
    if table:
        value = ddim().std.flip(0).pow(1 + (by == "variance")).float()
        torch.testing.assert_close(value, d[table], rtol=0, atol=1e-4)


@pytest.mark.parametrize("by", ["sigma", "variance", "linear", "const"])
def test_mining(by: str) -> None:
    d = golden("lpo_candidates_and_mining")
    rule = Threshold(low=0.3, high=0.3) if by == "const" else Threshold(by=by)
    mined = mine(d["scores"], rule.table(ddim().std)[index(d["mine_timesteps"])])
    assert torch.equal(torch.stack([mined.win, mined.lose]), d[f"mine_{by}_indices"])
    assert torch.equal(mined.keep, d[f"mine_{by}_valid"])


def test_mining_by_hand() -> None:
    scores = torch.tensor([[0.0, 1.0, math.nan], [math.log(3), 1.0, 5.0]])  # softmax 1/4 and 3/4: lead 1/2
    assert mine(scores, 0.499).keep.tolist() == [True, False, False]
    assert mine(scores, 0.501).keep.tolist() == [False, False, False]
    assert not mine(scores, 0.0).keep[1], "equal candidates are no pair"
    with pytest.raises(ValueError, match="0 <= low <= high < 1 is needed"):
        Threshold(low=0.5, high=0.4)
