"""Rows of recorded steps, and the batches that are made of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from diffalign.diffusion.rollout import replay
from diffalign.objectives.steps import Steps
from diffalign.online.config import OnlineConfig
from diffalign.online.steps import StepPass, every_step, mined_pairs, step_table, trajectory_pairs
from diffalign.online.tables import StepTable, shared_out
from diffalign.online.weights import ParameterSets
from diffalign.policy import Policy
from tests.online.by_hand import harvest, record
from tests.online.conftest import shake

Policies = Callable[[str], Policy]


def numbers(x: Tensor) -> list[float]:
    return x.flatten(1)[:, 0].tolist()


# ---------------------------------------------------------------------- tables by hand


def test_every_step_of_every_picture(config_of: Any) -> None:
    found = every_step(harvest([1.0, -1.0], [0, 1], keep=[True, False]), config_of("grpo"))
    assert numbers(found.x) == [0, 10, 20, 1, 11, 21]
    assert numbers(found.sides[:, 0]) == [0.5, 10.5, 20.5, 1.5, 11.5, 21.5]
    assert found.old_logp.tolist() == [0, -10, -20, -1, -11, -21]
    assert numbers(found.mean) == [0.25, 10.25, 20.25, 1.25, 11.25, 21.25]
    assert found.step.tolist() == [0, 1, 2] * 2
    assert found.image.tolist() == [50] * 3 + [51] * 3
    assert found.prompt.tolist() == [0] * 3 + [1] * 3
    assert found.advantage.tolist() == [1.0] * 3 + [-1.0] * 3
    assert found.weight.tolist() == [1.0] * 3 + [0.0] * 3
    assert found.unit.tolist() == list(range(6))


def test_a_prompt_stays_whole_where_the_objective_wants_it(config_of: Any) -> None:
    found = every_step(harvest([1.0, 2.0, 3.0], [0, 0, 1]), config_of("dense_reward_pl"))
    assert found.unit.tolist() == [0] * 6 + [1] * 3


def test_a_share_of_the_steps_is_drawn_for_each_picture(config_of: Any) -> None:
    pictures = harvest([0.0] * 12, [0] * 12)
    config = config_of("grpo", "update.step_share=0.6")
    found = every_step(pictures, config)
    steps = found.step.view(12, 2).tolist()
    assert all(a < b for a, b in steps)
    assert len({tuple(s) for s in steps}) == 3  # all pairs of three steps, by picture
    assert torch.equal(found.step, every_step(pictures, config).step)


def test_pairs_of_trajectories(config_of: Any) -> None:
    pictures = harvest([1.0, 3.0, 2.0, 5.0, 5.0, 4.0, 4.5], [0, 0, 0, 1, 1, 2, 2])
    found = step_table(pictures, config_of("d3po"))
    assert numbers(found.x) == [1, 0, 11, 10, 21, 20, 6, 5, 16, 15, 26, 25]
    assert found.role.tolist() == [1, -1] * 6
    assert found.unit.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert found.prompt.tolist() == [0] * 6 + [2] * 6
    assert len(trajectory_pairs(harvest([1.0, 1.0], [0, 0]), config_of("d3po"))) == 0


def test_a_share_of_the_steps_of_each_pair(config_of: Any) -> None:
    prompts = [i // 2 for i in range(8)]
    found = step_table(harvest([1.0, 0.0] * 4, prompts), config_of("d3po", "update.step_share=0.4"))
    steps = found.step.view(4, 2)
    assert torch.equal(steps[:, 0], steps[:, 1])  # winner and loser at the same one
    assert steps.unique().numel() > 1


def test_pairs_of_candidates(config_of: Any) -> None:
    """At step 1 both are far enough apart, at step 2 the second only; a NaN judges nothing."""
    nan = float("nan")
    records = [
        record(0, 2),
        record(1, 2, [[0.0, 4.0], [9.0, 0.0], [1.0, 2.0]]),
        record(2, 2, [[0.0, 0.0], [0.1, 0.1], [0.0, 9.0]]),
        replace(record(2, 2, [[nan, 0.0], [0.1, 0.0], [9.0, 0.0]]), step=2),
    ]
    found = mined_pairs(
        harvest([0.0] * 2, [0, 1], records=records), config_of("lpo", "judge.threshold.high=0.3")
    )
    assert numbers(found.x) == [10, 11, 21]
    assert numbers(found.sides[:, 0]) == [10.25, 11.0, 21.5]
    assert numbers(found.sides[:, 1]) == [10.0, 11.25, 21.0]
    assert found.step.tolist() == [1, 1, 2]
    assert found.image.tolist() == [50, 51, 51]
    assert found.unit.tolist() == [0, 1, 2]


# ---------------------------------------------------------------------- batches


def one(config: OnlineConfig, policy: Policy, iteration: Any) -> tuple[StepPass, Any, ParameterSets]:
    sets = ParameterSets(policy.trainable(), config.weights)
    return StepPass(config, policy, policy.reference), iteration(config, policy, sets), sets


SMALL = ("rollout.steps=3", "groups.images=2", "groups.batch=4")


@pytest.mark.parametrize("family", [pytest.param("sd", marks=pytest.mark.slow), "sd3"])
def test_the_ratio_starts_at_one(family: str, policies: Policies, config_of: Any, iteration: Any) -> None:
    """In fp32 with LoRA, guidance and gradient checkpointing, whatever the micro-batch."""
    policy = policies(family)
    policy.denoiser.enable_gradient_checkpointing()
    config = config_of("grpo", *SMALL, "objective.kl=0.04", family=family)
    assert config.rollout.guidance == 2.0
    on_steps, found, sets = one(config, policy, iteration)
    table = every_step(found, config)
    part = shared_out(table, 1, 3, seed=0)[0][0]
    assert len(part) == 3
    batch = on_steps(part, found, sets)
    assert (batch.logp - batch.old_logp).abs().max() <= 1e-6
    assert batch.ref_drift.min() > 0  # the LoRA does something
    loss, metrics = config.objective.loss(batch)
    assert (metrics["ratio"] - 1).abs().max() <= 1e-6
    loss.sum().backward()
    assert any(float(p.grad.abs().max()) > 0 for p in policy.trainable().values())
    policy.denoiser.disable_gradient_checkpointing()


def pair_loss(config: OnlineConfig, policy: Policy, logp: Tensor, ref: Tensor, n: int) -> Any:
    group, role = torch.arange(n).repeat(2), torch.tensor([1, -1]).repeat_interleave(n)
    loss, _ = config.objective.loss(Steps(logp=logp, ref_logp=ref, group=group, role=role))
    gradient = torch.autograd.grad(loss.sum(), list(policy.trainable().values()))
    return loss.detach(), torch.cat([g.flatten() for g in gradient])


def test_one_pass_for_winner_and_loser_equals_two(policies: Policies, config_of: Any, iteration: Any) -> None:
    policy, config = policies("sd3"), config_of("lpo", *SMALL)
    on_steps, found, sets = one(config, policy, iteration)
    table = mined_pairs(found, config)
    n = len(table)
    assert n >= 3
    asked: list[int] = []
    predict = policy.predict
    policy.predict = lambda *a: (asked.append(1), predict(*a))[1]  # type: ignore[method-assign]
    batch = on_steps(table, found, sets)
    del policy.predict
    assert len(asked) == 2  # the policy once, the reference once
    loss, _ = config.objective.loss(batch)
    gradient = torch.autograd.grad(loss.sum(), list(policy.trainable().values()))

    def two() -> Tensor:
        guided = found.guided.rows(table.prompt)
        return torch.cat(
            [replay(guided, found.run, table.x, s, table.step).logp for s in table.sides.unbind(1)]
        )

    with policy.reference():
        ref = two()
    wanted, slope = pair_loss(config, policy, two(), ref, n)
    torch.testing.assert_close(loss.detach(), wanted, rtol=1e-4, atol=1e-5)
    own = torch.cat([g.flatten() for g in gradient])
    assert (own - slope).abs().max() <= 1e-3 * slope.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("weights", [{}, {"old": {"first": 0.5}}, {"old": {"first": 0.5}, "sampling": "old"}])
def test_old_probabilities_can_be_asked_for_again(
    weights: dict[str, Any], policies: Policies, config_of: Any, iteration: Any
) -> None:
    """They are of the weights that made the pictures, wherever policy and old one are by then."""
    policy = policies("sd3")
    config = config_of("flow_dppo", *SMALL, "update.recompute_old=true", weights=weights)
    sets = ParameterSets(policy.trainable(), config.weights)
    sets.begin()
    shake(policy, 0.05, seed=2)
    sets.end(0)
    found = iteration(config, policy, sets)
    table = every_step(found, config)
    shake(policy, 0.1, seed=3)
    batch = StepPass(config, policy, policy.reference)(table, found, sets)
    assert (batch.old_logp - table.old_logp).abs().max() <= 1e-6
    assert (batch.logp - table.old_logp).abs().max() > 1e-4
    assert batch.drift.min() > 0
    lost = replace(table, old_logp=table.old_logp + 1)
    again = StepPass(config, policy, policy.reference)(lost, found, sets)
    assert torch.equal(again.old_logp, batch.old_logp)


def test_a_frame_tells_units_and_weights(config_of: Any, policies: Policies) -> None:
    config = config_of("d3po")
    table = step_table(harvest([1.0, 3.0, 2.0, 5.0], [0, 0, 1, 1]), config)
    table = replace(table, weight=torch.arange(len(table)).float())
    frame = StepPass(config, policies("sd3"), policies("sd3").reference).frame(table)
    assert config.objective.units(frame, frame.weight).tolist() == [0.5, 2.5, 4.5, 6.5, 8.5, 10.5]
    assert isinstance(table, StepTable)
