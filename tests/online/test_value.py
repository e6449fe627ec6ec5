"""The learned baseline: what it takes off, what it learns, and that it goes on where it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from diffalign.diffusion.process import Process
from diffalign.objectives.value import LearnedValue
from diffalign.online.collect import Harvest
from diffalign.online.config import OnlineConfig
from diffalign.online.steps import every_step
from diffalign.online.value import SIDE, ValueBaseline, ValueNetwork, explained, text_of
from diffalign.train.checkpoint import CheckpointError
from tests.online.by_hand import FLOW, VP, harvest, record
from tests.online.runs import online_run
from tests.online.test_runs import THREE, killed, rows, same

TEXT = 6
"""Features of a prompt."""


def baseline(process: Process = FLOW, channels: int = 2, side: int = 2, **options: Any) -> ValueBaseline:
    """For latents and prompts of tests, at the run's seed 0."""
    vae = SimpleNamespace(config=SimpleNamespace(latent_channels=channels))
    policy: Any = SimpleNamespace(
        process=process, device=torch.device("cpu"), pipeline=SimpleNamespace(vae_scale_factor=1, vae=vae),
        encode_prompts=lambda texts: [{"text": torch.zeros(3, TEXT)} for _ in texts],
        collate_prompts=lambda found: {"text": torch.stack([row["text"] for row in found])},
    )  # fmt: skip
    return ValueBaseline(LearnedValue(**options), policy, side, 0, Accelerator(cpu=True))


def pictures(reward: list[float], text: Tensor, process: Process = FLOW, **options: Any) -> Harvest:
    """One picture of each prompt, whose embeddings are (P, TEXT)."""
    found = harvest(reward, list(range(len(reward))), process, texts=["x"] * len(reward), **options)
    return replace(found, guided=replace(found.guided, cond={"text": text[:, None].repeat(1, 3, 1)}))


class Sum(nn.Module):
    """Latents, time and prompt in one number, which no optimizer moves."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        assert x.dtype == t.dtype == c.dtype == torch.float32
        return self.one * (x.flatten(1).mean(1) + t + c.mean(1))


# ---------------------------------------------------------------------- by hand


@pytest.mark.parametrize(("process", "times"), [(FLOW, [0.9, 0.7, 0.4]), (VP, [0.751, 0.501, 0.251])])
def test_the_advantage_is_the_reward_less_the_value_of_each_step(
    process: Process, times: list[float], config_of: Callable[..., OnlineConfig]
) -> None:
    """Rewards 1 and 3 have mean 2 and deviation 1, and the latents of picture i at step k are i + 10 k."""
    found = pictures([1.0, 3.0], torch.tensor([[0.25] * TEXT, [0.5] * TEXT]), process)
    table = every_step(found, config_of("dpok"))
    own = baseline(process)
    own.network = Sum()
    changed, told = own(table, found, iteration=0)
    wanted = [
        reward - (2 + i + 10 * k + times[k] + c)
        for i, (reward, c) in enumerate([(1.0, 0.25), (3.0, 0.5)])
        for k in range(3)
    ]
    assert changed.advantage.tolist() == pytest.approx(wanted, rel=1e-5)
    left = torch.tensor(wanted, dtype=torch.float64)
    assert float(told["value_loss"]) == pytest.approx(float(left.square().mean()), rel=1e-5)
    variance = float(left.var(unbiased=False))  # rewards have variance 1
    assert float(told["explained_variance"]) == pytest.approx(1 - variance, rel=1e-5)
    assert torch.equal(changed.x, table.x)


def test_a_new_baseline_is_the_mean_reward(config_of: Callable[..., OnlineConfig]) -> None:
    """And pictures of a prompt that was dropped teach it nothing."""
    found = pictures([1.0, 3.0, 50.0], torch.randn(3, TEXT), keep=[True, True, False])
    table = every_step(found, config_of("dpok"))
    own = baseline(learning_rate=1e-12)
    changed, told = own(table, found, iteration=0)
    assert own.replay.reward.tolist() == [1.0] * 3 + [3.0] * 3
    assert changed.advantage.tolist() == pytest.approx([-1.0] * 3 + [1.0] * 3 + [48.0] * 3)
    assert float(told["explained_variance"]) == 0


def test_only_the_latest_steps_are_kept(config_of: Callable[..., OnlineConfig]) -> None:
    own = baseline(replay=5)
    for iteration, reward in enumerate(([1.0], [2.0], [3.0])):
        found = pictures(reward, torch.randn(1, TEXT))
        own(every_step(found, config_of("dpok")), found, iteration)
    assert own.replay.reward.tolist() == [2.0] * 2 + [3.0] * 3


def test_equal_rewards_have_no_advantage(config_of: Callable[..., OnlineConfig]) -> None:
    found = pictures([0.3, 0.3], torch.randn(2, TEXT))
    changed, told = baseline()(every_step(found, config_of("dpok")), found, iteration=0)
    assert changed.advantage.abs().max() < 1e-6
    assert bool(told["explained_variance"].isnan())
    assert float(told["value_loss"]) < 1e-10


def test_explained_variance() -> None:
    reward = torch.tensor([1.0, 2.0, 3.0, 6.0])
    assert float(explained(reward, reward + 5)) == 1
    assert float(explained(reward, torch.zeros(4))) == 0
    assert float(explained(reward, -reward)) == -3


def test_what_is_seen_of_large_latents_and_prompts(config_of: Callable[..., OnlineConfig]) -> None:
    """Any number of channels, averaged down in parts, in fp32."""
    x = torch.randn(2, 7, 64, 24).bfloat16()
    steps = [replace(record(0, 2), x=x, x_next=x, mean=None)]
    found = pictures([1.0, 2.0], torch.randn(2, TEXT), records=steps)
    own = baseline(channels=7, side=64)
    seen = own.seen(every_step(found, config_of("dpok")), found)
    assert seen.x.shape == (2, 7, SIDE, SIDE)
    torch.testing.assert_close(seen.x[0, 0, 0, 0], x[0, 0, :4, :2].float().mean())
    assert {v.dtype for v in seen.tensors().values()} == {torch.float32}
    torch.testing.assert_close(text_of({"text": torch.eye(3)[None]}), torch.full((1, 3), 1 / 3))
    pooled = torch.randn(2, 4)
    assert torch.equal(text_of({"text": torch.zeros(2, 3, 9), "pooled": pooled}), pooled)


# ---------------------------------------------------------------------- what it learns


def iteration_of(number: int, of_prompt: float = 1.0, of_picture: float = 1.0) -> Harvest:
    """32 pictures of one step, of eight prompts that come again; rewards have a part of the prompt and one of
    the noisy latents.
    """
    draw = torch.Generator().manual_seed(number)
    text = torch.randn(8, TEXT, generator=torch.Generator().manual_seed(99)).repeat(4, 1)
    x = torch.randn(32, 2, 2, 2, generator=draw)
    reward = 20 + of_prompt * text[:, 0] + of_picture * x.flatten(1).mean(1) * 8**0.5
    steps = [replace(record(0, 32), x=x, x_next=x)]
    return pictures(reward.tolist(), text, records=steps)


@pytest.mark.parametrize("parts", [(1.0, 0.0), (0.0, 1.0)])
def test_it_learns_what_rewards_depend_on(
    parts: tuple[float, float], config_of: Callable[..., OnlineConfig]
) -> None:
    """A prompt's part and a picture's, on pictures that it has not seen."""
    own, config, found = baseline(learning_rate=2e-3, batch=64), config_of("dpok"), []
    for number in range(30):
        made = iteration_of(number, *parts)
        changed, told = own(every_step(made, config), made, number)
        found.append(float(told["explained_variance"]))
    assert found[0] == 0
    assert min(found[-3:]) > 0.8
    assert float(told["value_loss"]) < 0.2
    assert float(changed.advantage.var()) < 0.3 * float(made.advantage.var())


def test_a_network_is_its_seeds_alone() -> None:
    torch.manual_seed(1)
    one = ValueNetwork((2, 3, 5), TEXT, seed=4)
    torch.manual_seed(2)
    same_seed, other = ValueNetwork((2, 3, 5), TEXT, seed=4), ValueNetwork((2, 3, 5), TEXT, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same_seed.parameters(), strict=True))
    assert not torch.equal(one.time.weight, other.time.weight)
    assert one(torch.randn(3, 2, 3, 5), torch.rand(3), torch.randn(3, TEXT)).tolist() == [0.0] * 3


# ---------------------------------------------------------------------- state


def test_state_goes_on_bit_equal(config_of: Callable[..., OnlineConfig]) -> None:
    config, own, other = config_of("dpok"), baseline(batch=20), baseline(batch=20)
    for number in range(2):
        made = iteration_of(number)
        own(every_step(made, config), made, number)
    other.load({k: v.clone() for k, v in own.state().items()})
    torch.rand(3)  # nothing hangs on the random state
    made = iteration_of(2)
    left, right = (b(every_step(made, config), made, 2)[0].advantage for b in (own, other))
    assert torch.equal(left, right)
    states = own.state(), other.state()
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0].keys() | states[1].keys())


def test_a_state_of_other_latents_is_refused() -> None:
    own = baseline()
    own.load(own.state())  # before the first iteration there is no replay
    assert own.replay is None
    with pytest.raises(CheckpointError, match=r"value network does not fit, first 'look\.0\.weight'"):
        own.load(baseline(channels=3).state())
    with pytest.raises(CheckpointError, match="value network does not fit"):
        own.load({})


# ---------------------------------------------------------------------- whole runs

VALUE = "advantage={name: value, learning_rate: 1e-3, batch: 16}"


@pytest.mark.slow
def test_killed_and_resumed_is_bit_equal(models: Path, tmp_path: Path) -> None:
    """Killed in the middle of the second of three iterations."""
    torch.set_num_threads(1)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    online_run("dpok", "sd", models, whole, *THREE, VALUE)
    killed("sd", str(models), str(broken), "--objective", "dpok", "--kill", "rollout:14", *THREE, VALUE)
    assert [p.name for p in (broken / "checkpoints").glob("step-*")] == ["step-000001"]
    online_run("dpok", "sd", models, tmp_path / "unused", resume=broken)
    same(whole, broken)  # also the network, its optimizer and the replay, which are in the state
    assert [r["step"] for r in rows(broken)] == [1, 2, 3]
    assert all(r["value_loss"] > 0 and r["explained_variance"] is not None for r in rows(broken))
