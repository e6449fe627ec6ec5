"""All parts together on tiny models: sample, score, compare, replay, update."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffalign.diffusion.rollout import Guided, Trajectories, replay, rollout
from diffalign.diffusion.rollout_options import Branching, Recorder, RolloutOptions, StochasticSteps
from diffalign.diffusion.transitions import Ddim, FlowSde
from diffalign.objectives.advantages import FlowGrpo
from diffalign.objectives.combine import advantages_of
from diffalign.objectives.forward_process import mean_square
from diffalign.objectives.mining import Threshold, mine
from diffalign.objectives.steps import Steps, build_online
from diffalign.policy import Policy, load_policy
from tests.tiny import tiny_folder

GROUP = torch.tensor([0, 0, 0, 1, 1, 1])


def policy_of(family: str, folder: Path) -> Policy:
    policy = load_policy(tiny_folder(family, folder), {"rank": 2, "alpha": 4})
    policy.set_reference()
    policy.denoiser.eval()
    return policy


def guided_of(policy: Policy) -> Guided:
    prompts = ["a red circle"] * 3 + ["a blue square"] * 3
    cond, uncond = (policy.collate_prompts(policy.encode_prompts(p)) for p in (prompts, [""] * 6))
    return Guided(policy=policy, cond=cond, uncond=uncond, scale=3.0)


def options_of(family: str, **changes: object) -> RolloutOptions:
    transition = FlowSde() if family == "sd3" else Ddim()
    window = StochasticSteps(which="window", count=2)
    return replace(RolloutOptions(steps=4, guidance=3.0, transition=transition, stochastic=window), **changes)


def ratio_batch(guided: Guided, run: Trajectories, place: int, advantage: Tensor) -> Steps:
    """One step of all images, as a trainer would put it together."""
    record = run.records[place]
    own = replay(guided, run, record.x, record.x_next, record.step)
    with guided.policy.reference():
        ref = replay(guided, run, record.x, record.x_next, record.step)
    return Steps(
        logp=own.logp, old_logp=record.logp, ref_logp=ref.logp, advantage=advantage, group=GROUP,
        role=torch.zeros(6).long(), std=own.std, sqrt_dt=own.sqrt_dt,
        drift=mean_square(own.mean - record.mean),
        ref_drift=mean_square(own.mean - ref.mean),
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("name", "family"), [("ddpo", "sd"), ("grpo_guard", "sd3")])
def test_an_update_favours_the_steps_of_better_images(name: str, family: str, tmp_path: Path) -> None:
    policy = policy_of(family, tmp_path)
    guided = guided_of(policy)
    run = rollout(guided, list(range(6)), options_of(family, recorder=Recorder(means=True)))
    advantage = advantages_of(policy.decode(run.x0).mean((1, 2, 3)), GROUP, FlowGrpo()).value
    objective = build_online(name)
    optimizer = torch.optim.SGD(policy.trainable().values(), lr=1e-3)
    for place in range(2):
        loss, metrics = objective.loss(ratio_batch(guided, run, place, advantage))
        assert (metrics["ratio"] - 1).abs().max() <= 1e-6
        loss.mean().backward()
    optimizer.step()
    with torch.no_grad():
        after = [ratio_batch(guided, run, place, advantage) for place in range(2)]
    gain = torch.stack([(b.logp - b.old_logp) * advantage for b in after]).sum()
    assert gain > 0


@pytest.mark.slow
def test_lpo_prefers_the_winners(tmp_path: Path) -> None:
    family = "sd3"
    policy = policy_of(family, tmp_path)
    guided = guided_of(policy)
    options = options_of(family, branching=Branching(candidates=3))
    run = rollout(guided, list(range(6)), options, score=lambda x, t: 50 * x.mean((2, 3, 4)))
    record, rows = run.records[0], torch.arange(6)
    mined = mine(record.scores, Threshold(low=0.0, high=0.0).table(run.sampler.std)[record.step])
    assert mined.keep.all()
    sides = torch.stack([record.candidates[mined.win, rows], record.candidates[mined.lose, rows]])

    def batch() -> Steps:
        own = replay(guided, run, record.x, record.x_next, record.step)
        logp = run.sampler.logp(sides, own.mean, record.step)
        with policy.reference():
            ref = replay(guided, run, record.x, record.x_next, record.step)
        ref_logp = run.sampler.logp(sides, ref.mean, record.step)
        return Steps(
            logp=logp.flatten(), ref_logp=ref_logp.flatten(), group=rows.repeat(2),
            role=torch.tensor([1] * 6 + [-1] * 6),
        )  # fmt: skip

    objective = build_online("lpo")
    before = objective.loss(batch())[0].mean()
    assert float(before.detach()) == pytest.approx(0.6931472, rel=1e-5)
    before.backward()
    torch.optim.SGD(policy.trainable().values(), lr=1e-5).step()
    with torch.no_grad():
        after, metrics = objective.loss(batch())
    assert after.mean() < before
    assert metrics["margin"].mean() > 0
