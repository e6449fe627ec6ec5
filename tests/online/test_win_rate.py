"""Win rates among the pictures of a prompt, by scores, by judges of pairs and by groupwise scorers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from diffalign.online.blocks import RewardConfig
from diffalign.online.rewards import PixelReward, load_reward
from diffalign.online.win_rate import WinRate
from diffalign.policy import Policy
from scorers.protocol import PairOutput
from tests.online.by_hand import made
from tests.online.runs import Brightness

CPU = torch.device("cpu")


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
        load_reward(RewardConfig(scorer="tests.online.test_win_rate:Judge"), policies("sd3"))


class Sets(Brightness):
    """Of a set as a whole."""

    kind = "set"


def test_what_compares_no_group_is_refused_before_the_run(policies: Callable[[str], Policy]) -> None:
    config = RewardConfig(scorer="tests.online.test_win_rate:Sets", among="group")
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
    place = "tests.online.test_win_rate:Place"
    reward = load_reward(RewardConfig(scorer=place, among="group"), policies("sd3"))
    assert reward(made(0.1, 0.2, 0.3, 0.9, group=[0, 1, 0, 1])).tolist() == [-1.0, -1.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="is groupwise: it compares pictures, so set among=group"):
        load_reward(RewardConfig(scorer=place), policies("sd3"))
