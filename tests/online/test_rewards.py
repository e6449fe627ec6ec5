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
from diffalign.online.blocks import RewardConfig
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
    load_reward,
)
from diffalign.online.weights import ParameterSets
from diffalign.online.win_rate import WinRate
from diffalign.policy import Policy
from scorers.latent import latent_scorers
from scorers.protocol import PairOutput
from tests.online.by_hand import latents
from tests.online.runs import BRIGHT, LATENT, Brightness, LatentMean

CPU = torch.device("cpu")


def made(*values: float, prompts: Sequence[str] = (), group: Sequence[int] = ()) -> Made:
    """Pictures of one grey each, and latents of the same number."""
    pictures = torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
    return Made(
        latents=latents(*values), pictures=pictures, prompts=tuple(prompts or ["a"] * len(values)),
        group=tuple(group or [0] * len(values)),
    )  # fmt: skip


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


# ---------------------------------------------------------------------- kinds of rewards


class Judge(Brightness):
    """Knows a matrix of logits only."""

    kind = "pairwise"

    def matrix(self, images: Sequence[Tensor], prompt: str) -> Tensor:
        grey = torch.tensor([float(i.mean()) for i in images])
        return 4 * (grey[:, None] - grey[None, :])

    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        raise TypeError("no score of a single picture")


def test_win_rates_by_hand() -> None:
    one = made(0.1, 0.6, 0.5, 0.1, 0.3, prompts=["a", "a", "b", "a", "b"], group=[0, 0, 1, 0, 1])
    found = WinRate(Brightness(), CPU)(one)
    assert found.tolist() == [0.25, 1.0, 1.0, 0.25, 0.0]  # a tie is half a win
    pair = torch.tensor(4 * 0.5).sigmoid()
    wanted = [(1 - pair + 0.5) / 2, pair, 0, (1 - pair + 0.5) / 2, 0]
    found = WinRate(Judge(), CPU)(one)
    assert found[[0, 1, 3]].tolist() == pytest.approx([float(wanted[i]) for i in (0, 1, 3)])
    assert float(found[2] + found[4]) == pytest.approx(1.0)


def test_two_groups_of_the_same_words_are_two_groups() -> None:
    found = WinRate(Brightness(), CPU)(made(0.1, 0.2, 0.3, 0.4, group=[0, 0, 1, 1]))
    assert found.tolist() == [0.0, 1.0, 0.0, 1.0]


def test_lower_is_better_turns_the_sign() -> None:
    scorer = Brightness()
    scorer.higher_better = False
    assert PixelReward(scorer, CPU)(made(0.25)).tolist() == [-25.0]
    assert WinRate(scorer, CPU)(made(0.1, 0.2)).tolist() == [1.0, 0.0]


def test_a_judge_of_pairs_gives_no_score_of_one(policies: Callable[[str], Policy]) -> None:
    with pytest.raises(ValueError, match="is pairwise: it compares pictures, so set among=group"):
        load_reward(RewardConfig(scorer="tests.online.test_rewards:Judge"), policies("sd3"))


class Sets(Brightness):
    """Of a set as a whole."""

    kind = "set"


def test_what_compares_no_group_is_refused_before_the_run(policies: Callable[[str], Policy]) -> None:
    config = RewardConfig(scorer="tests.online.test_rewards:Sets", among="group")
    with pytest.raises(ValueError, match="is set and compares no group"):
        load_reward(config, policies("sd3"))


class Two(Brightness):
    """Compares two pictures and knows nothing else; what is very dark it cannot read."""

    kind = "pairwise"

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []
        self.lost = 0

    def compare(self, a: Any, b: Any, prompts: Any = None, **options: Any) -> PairOutput:
        """Four times the difference of the greys is the logit."""
        first, second = (torch.stack([torch.as_tensor(x).mean() for x in side]) for side in (a, b))
        self.asked.append(len(first))
        logit = (4 * (first - second))[self.lost :]
        status = tuple(
            "ok" if x > 0.15 and y > 0.15 else "unread" for x, y in zip(first, second, strict=True)
        )
        return PairOutput(logit=logit, prob=logit.sigmoid(), status=status)

    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        """See Judge."""
        raise TypeError("no score of a single picture")


def test_a_judge_of_pairs_is_asked_once_for_all_pairs_of_a_prompt() -> None:
    one, judge = made(0.2, 0.6, 0.5, 0.3, 0.4, group=[0, 0, 1, 0, 1]), Two()
    found = WinRate(judge, CPU)(one)
    torch.testing.assert_close(found, WinRate(Judge(), CPU)(one))
    assert judge.asked == [3, 1]


def test_pairs_that_could_not_be_read_count_for_nobody() -> None:
    found = WinRate(Two(), CPU)(made(0.2, 0.6, 0.1, 0.3))
    assert found.isnan().tolist() == [False, False, True, False]  # no pair of it was read
    torch.testing.assert_close(found[[0, 1, 3]], WinRate(Judge(), CPU)(made(0.2, 0.6, 0.3)))


def test_a_judge_that_leaves_out_pairs_is_an_error() -> None:
    judge = Two()
    judge.lost = 1
    with pytest.raises(ValueError, match="2 answers for 3 pairs"):
        WinRate(judge, CPU)(made(0.2, 0.6, 0.3))


def test_a_scorer_of_single_pictures_may_be_asked_for_pairs() -> None:
    judge = Two()
    judge.kind = "pointwise"
    assert WinRate(judge, CPU, by_pairs=True)(made(0.2, 0.6)).tolist() == pytest.approx(
        [0.1680, 0.8320], abs=1e-4
    )
    with pytest.raises(TypeError, match="no score of a single"):
        WinRate(judge, CPU)(made(0.2, 0.6))


def test_a_distance_to_a_reference_compares_no_pictures_of_a_prompt() -> None:
    judge = Two()
    judge.needs = frozenset({"reference"})
    with pytest.raises(ValueError, match="is pairwise and compares no group"):
        WinRate(judge, CPU)


class Place(Brightness):
    """Minus the place of a picture among those that it is given with."""

    kind = "groupwise"

    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        """See Scorer."""
        return -(super().score_tensor(x01, prompts).argsort(descending=True).argsort().float())


def test_a_groupwise_scorer_sees_each_prompt_apart(policies: Callable[[str], Policy]) -> None:
    place = "tests.online.test_rewards:Place"
    reward = load_reward(RewardConfig(scorer=place, among="group"), policies("sd3"))
    assert reward(made(0.1, 0.2, 0.3, 0.9, group=[0, 1, 0, 1])).tolist() == [-1.0, -1.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="is groupwise: it compares pictures, so set among=group"):
        load_reward(RewardConfig(scorer=place), policies("sd3"))


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
