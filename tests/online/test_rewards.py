"""Rewards: asked in the background, kept on disk, and refused where they make no sense."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import scorers
from diffalign.online.config import OnlineConfig
from diffalign.online.rewards import (
    Background,
    LatentReward,
    Made,
    PixelReward,
    RewardError,
    RewardLog,
    content_keys,
    load_latent_scorer,
)
from diffalign.online.weights import ParameterSets
from diffalign.policy import Policy
from scorers.latent import latent_scorers
from tests.online.by_hand import made
from tests.online.runs import BRIGHT, LATENT, Brightness, LatentMean

CPU = torch.device("cpu")


def bright(one: Made) -> Tensor:
    return one.pictures.mean((1, 2, 3))


def background(tmp_path: Path, rewards: dict[str, Any], patience: float = 30.0) -> Background:
    log = RewardLog(tmp_path / "rewards", 0)
    log.open(0)
    return Background(rewards, log, patience)


# ---------------------------------------------------------------------- the background


def test_batches_come_back_in_their_order_with_all_rewards(tmp_path: Path) -> None:
    def slow_once(one: Made) -> Tensor:
        time.sleep(0.05 if float(one.pictures.max()) < 0.3 else 0)
        return -bright(one)

    own = background(tmp_path, {"a": bright, "b": slow_once})
    own.submit(made(0.1, 0.2))
    own.submit(made(0.5))
    found = own.collect(2)
    torch.testing.assert_close(found, torch.tensor([[0.1, -0.1], [0.2, -0.2], [0.5, -0.5]]).double())


def test_it_works_while_pictures_are_made(tmp_path: Path) -> None:
    go = threading.Event()

    def waits(one: Made) -> Tensor:
        assert go.wait(30)
        return bright(one)

    own = background(tmp_path, {"a": waits})
    own.submit(made(0.1))  # returns at once
    go.set()
    assert own.collect(1).shape == (1, 1)


def test_a_reward_that_fails_is_named(tmp_path: Path) -> None:
    def fails(one: Made) -> Tensor:
        raise ConnectionError("gone")

    own = background(tmp_path, {"good": bright, "bad": fails})
    own.submit(made(0.1))
    with pytest.raises(RewardError, match="reward bad failed: ConnectionError: gone"):
        own.collect(1)


def test_a_reward_that_hangs_is_given_up(tmp_path: Path) -> None:
    never = threading.Event()

    def hangs(one: Made) -> Tensor:
        never.wait(30)
        return bright(one)

    own = background(tmp_path, {"slow": hangs}, patience=0.1)
    own.submit(made(0.1))
    started = time.perf_counter()
    with pytest.raises(RewardError, match=r"within 0\.1 s \(patience\) from slow: .*raise patience"):
        own.collect(1)
    assert time.perf_counter() - started < 5
    never.set()


@pytest.mark.parametrize(
    ("answer", "said"), [(torch.ones(3), r"\(3,\)"), (torch.ones(2, 1), r"\(2, 1\)"), ([1.0, 2.0], "list")]
)
def test_one_number_for_each_picture_is_needed(answer: Any, said: str, tmp_path: Path) -> None:
    own = background(tmp_path, {"a": lambda one: answer})
    own.submit(made(0.1, 0.2))
    with pytest.raises(RewardError, match=f"reward a answered {said} for 2 pictures; one number each"):
        own.collect(1)


# ---------------------------------------------------------------------- the log


class Counting:
    """A reward that notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, one: Made) -> Tensor:
        self.asked.append(len(one.prompts))
        value = bright(one).double()
        return torch.where(value > 0.85, torch.inf, torch.where(value > 0.75, torch.nan, value))


def test_after_a_restart_nobody_is_asked_again(tmp_path: Path) -> None:
    reward, answers = Counting(), list[list[float]]()
    for _ in range(2):
        own = background(tmp_path, {"a": reward})
        own.submit(made(0.1, 0.8))
        own.submit(made(0.3, 0.9))
        found = own.collect(2).flatten()
        assert found.isnan().tolist() == [False, True, False, True]  # what is infinite is no reward either
        answers.append(found.nan_to_num(-1.0).tolist())
    assert answers[0] == answers[1]  # to the last bit
    assert reward.asked == [2, 2]


def test_what_is_asked_for_anew(tmp_path: Path) -> None:
    """Another picture, prompt or set of rewards."""
    base = made(0.1)
    keys = [
        content_keys(base, ["a"])[0], content_keys(made(0.2), ["a"])[0],
        content_keys(made(0.1, prompts=["b"]), ["a"])[0], content_keys(base, ["a", "b"])[0],
    ]  # fmt: skip
    assert len(set(keys)) == 4
    assert content_keys(made(0.2, 0.1), ["a"])[1] == keys[0]


def test_a_line_cut_short_by_a_kill_is_scored_again_once(tmp_path: Path) -> None:
    reward = Counting()
    own = background(tmp_path, {"a": reward})
    own.submit(made(0.1, 0.2))
    own.collect(1)
    (file,) = (tmp_path / "rewards").iterdir()
    file.write_text(file.read_text()[:-20])
    for _ in range(2):  # the second time all is known again
        own = background(tmp_path, {"a": reward})
        own.submit(made(0.1, 0.2))
        assert own.collect(1).flatten().tolist() == pytest.approx([0.1, 0.2])
    assert reward.asked == [2, 2]
    assert {"key", "prompt", "rewards"} == set(json.loads(file.read_text().splitlines()[0]))


def test_another_number_of_processes_finds_the_rewards_too(tmp_path: Path) -> None:
    reward = Counting()
    for rank in (1, 0):
        log = RewardLog(tmp_path, rank)
        log.open(0)
        own = Background({"a": reward}, log, 30.0)
        own.submit(made(0.1))
        own.collect(1)
    assert reward.asked == [1]


# ---------------------------------------------------------------------- what they are given


class Darkness(Brightness):
    """The other way round; notes the prompts."""

    name = "darkness"
    prompts: ClassVar[list[str]] = []

    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        """See Scorer."""
        Darkness.prompts += prompts
        return -super().score_tensor(x01, prompts)


def test_nothing_is_decoded_for_latent_rewards(
    policies: Callable[[str], Policy], config_of: Any, iteration: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, decoded = policies("sd3"), list[int]()
    original = policy.decode
    monkeypatch.setattr(policy, "decode", lambda x: decoded.append(len(x)) or original(x))
    for rewards in ([LATENT], [LATENT, BRIGHT]):
        looks = {LATENT: "latents", BRIGHT: "pictures"}
        blocks = {"rewards": [{"scorer": r, "looks": looks[r]} for r in rewards]}
        config = config_of("nft", **blocks)
        found = iteration(config, policy, ParameterSets(policy.trainable(), config.weights))
        assert found.rewards is not None
        assert bool(found.rewards.isfinite().all())
        assert sum(decoded) == (0 if len(rewards) == 1 else 8)
    with pytest.raises(ValueError, match="this reward looks at pictures"):
        PixelReward(Brightness(), CPU)(replace(made(0.1), pictures=None))


def test_prompts_ask_for_a_reward_and_the_front_of_the_batch_gets_it(
    policies: Callable[[str], Policy], config_of: Any, iteration: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, told = policies("sd3"), list[str]()
    original = policy.encode_prompts
    monkeypatch.setattr(policy, "encode_prompts", lambda texts: told.extend(texts) or original(texts))
    dark = "tests.online.test_rewards:Darkness"
    rewards = [{"scorer": BRIGHT}, {"scorer": dark, "word": "dim"}]
    config = config_of("grpo", "combination.how=pareto", rewards=rewards)
    Darkness.prompts.clear()
    found = iteration(config, policy, ParameterSets(policy.trainable(), config.weights))
    prompt = found.planned[0].prompt
    assert told[:2] == [f"<reward 1> {prompt}", f"dim {prompt}"]
    assert Darkness.prompts == [prompt] * 8
    # what is brighter is less dark: all are in the front
    wanted = torch.cat([found.rewards[:4, 0], found.rewards[4:, 1]]) / 8
    torch.testing.assert_close(found.advantage.double(), wanted, atol=1e-5, rtol=1e-5)


def test_a_latent_reward_of_another_vae_is_refused(
    policies: Callable[[str], Policy], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = policies("sd3")

    def entry(vae: str) -> Any:
        class Loaded:
            @staticmethod
            def load(*_: Any, **__: Any) -> LatentMean:
                return LatentMean(vae)

        return Loaded

    monkeypatch.setattr(latent_scorers, "get", lambda name: entry(name.partition("-")[2]))
    with pytest.raises(ValueError, match="latents of another VAE: its scores mean nothing here"):
        load_latent_scorer("l-other", policy)
    assert load_latent_scorer(f"l-{policy.encoder_id('vae')}", policy).name == "latent_mean"


def test_a_picture_has_the_same_latent_reward_in_every_batch(policies: Callable[[str], Policy]) -> None:
    reward = LatentReward(LatentMean(), policies("sd3"), noise=0.4)
    whole = reward(made(0.1, 0.2, 0.3))
    assert whole[1:].tolist() == pytest.approx(reward(made(0.2, 0.3)).tolist())
    clean = LatentReward(LatentMean(), policies("sd3"), noise=0.0)(made(0.1))
    assert clean.tolist() == pytest.approx([4.0])
    assert clean.tolist() != pytest.approx(whole[:1].tolist(), rel=1e-3)


# ---------------------------------------------------------------------- a whole iteration


class Moody(Brightness):
    """Has no finite answer for a prompt with its word."""

    word = "star"

    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        score = super().score_tensor(x01, prompts)
        score[[i for i, p in enumerate(prompts) if self.word in p][:1]] = float("nan")
        return score


class Blind(Brightness):
    """Has none for any."""

    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        return torch.full((len(prompts),), torch.inf)


def one(config: OnlineConfig, policy: Policy, iteration: Any) -> Any:
    return iteration(config, policy, ParameterSets(policy.trainable(), config.weights))


def test_rewards_in_the_background_are_those_of_the_foreground(
    policies: Callable[[str], Policy], config_of: Any, iteration: Any
) -> None:
    config, policy = config_of("nft", "rollout.steps=2", "groups.images=2", "groups.batch=2"), policies("sd3")
    found = one(config, policy, iteration)
    with torch.no_grad():
        pictures = ((policy.decode(found.run.x0) + 1) / 2).clamp(0, 1)
    wanted = scorers.load(BRIGHT).score_tensor(pictures, [p.prompt for p in found.planned])
    torch.testing.assert_close(found.rewards[:, 0].float(), wanted, rtol=1e-5, atol=1e-4)
    assert found.figures[f"reward/{BRIGHT}"] == pytest.approx(float(found.rewards.mean()))
    assert found.keep.all()
    for group in range(2):
        assert float(found.advantage[found.prompt == group].sum()) == pytest.approx(0, abs=1e-4)


def test_a_group_without_a_finite_reward_is_dropped_and_reported(
    policies: Callable[[str], Policy], config_of: Any, iteration: Any
) -> None:
    rewards = [{"scorer": "tests.online.test_rewards:Moody"}]
    changes = ("rollout.steps=2", "groups.images=2", "groups.prompts=6")
    config = config_of("nft", *changes, rewards=rewards)
    found = one(config, policies("sd3"), iteration)
    star = torch.tensor(["star" in p.prompt for p in found.planned])
    assert found.keep.tolist() == (~star).tolist()
    assert found.advantage[star].tolist() == [0.0, 0.0]
    assert found.figures["dropped"] == pytest.approx(1 / 6)
    config = config_of("nft", *changes, rewards=[{"scorer": "tests.online.test_rewards:Blind"}])
    with pytest.raises(RewardError, match="no prompt of the iteration has finite rewards"):
        one(config, policies("sd3"), iteration)


def test_win_rates_are_among_all_pictures_of_a_prompt_whoever_made_them(
    policies: Callable[[str], Policy], config_of: Any, iteration: Any
) -> None:
    rewards = [{"scorer": BRIGHT, "among": "group"}]
    changes = ("rollout.steps=2", "groups.images=3", "groups.batch=2", "groups.reference_share=0.4")
    config = config_of("online_pairs", *changes, rewards=rewards)
    found = one(config, policies("sd3"), iteration)
    assert [p.of_reference for p in found.planned] == [True, False, False] * 2
    for group in range(2):
        assert sorted(found.rewards[found.prompt == group, 0].tolist()) == [0.0, 0.5, 1.0]


def test_a_scorer_named_twice_is_refused(
    policies: Callable[[str], Policy], config_of: Any, iteration: Any
) -> None:
    with pytest.raises(ValueError, match="rewards name a scorer twice"):
        one(config_of("nft", rewards=[{"scorer": BRIGHT}] * 2), policies("sd3"), iteration)
