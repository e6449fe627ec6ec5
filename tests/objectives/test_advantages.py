"""Advantage rules, several rewards, the Pareto front and dropped groups."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from diffalign.objectives.advantages import (
    BestOfN,
    BestOnly,
    BestWorst,
    DanceGrpo,
    DdpoTracker,
    DrGrpo,
    FlowFactory,
    FlowGrpo,
    Raw,
    Rule,
    Trimmed,
    VerlOmni,
    WholeBatch,
    advantages,
)
from diffalign.objectives.combine import Combination, advantages_of, nondominated, pareto_weights
from tests.objectives.online import CLOSE, golden

BY_PROMPT = {
    "flowgrpo_globalstd": FlowGrpo(),
    "flowgrpo_groupstd": FlowGrpo(global_std=False),
    "verlomni_globalstd": VerlOmni(),
    "verlomni_groupstd": VerlOmni(global_std=False),
    "drgrpo_nostd": DrGrpo(),
    "flowgrpo_sft": BestOnly(),
    "flowgrpo_rwr": Raw(),
}
FOUR_OF_SIX = torch.arange(4).repeat_interleave(6)


def value(rewards: Tensor, group: Tensor, rule: Rule, combination: Combination | None = None) -> Tensor:
    return advantages_of(rewards, group, rule, combination).value


@pytest.mark.parametrize("key", list(BY_PROMPT))
def test_published_rules(key: str) -> None:
    d = golden("grpo_advantages")
    found = value(d["rewards"], d["prompt_id"], BY_PROMPT[key])
    torch.testing.assert_close(found, d[f"adv_{key}"].double(), **CLOSE)


def test_best_and_worst() -> None:
    """As published but for the group without spread, where that takes the first two images."""
    d = golden("grpo_advantages")
    found = value(d["rewards"], d["prompt_id"], BestWorst())
    flat = d["prompt_id"] == 3
    assert torch.equal(found[~flat], d["adv_flowgrpo_dpo"][~flat])
    assert found[flat].abs().sum() == 0


def test_published_rules_on_groups_in_a_row() -> None:
    d = golden("grpo_advantages")
    a = d["contig_rewards_a"]
    cases = {"dance": DanceGrpo(), "nogroup": WholeBatch(), "mixgrpo_trimmed": Trimmed()}
    assert float(d["mixgrpo_trimmed_ratio"]) == Trimmed().ratio
    for key, rule in cases.items():
        torch.testing.assert_close(value(a, FOUR_OF_SIX, rule), d[f"adv_{key}"].double(), **CLOSE)


def test_several_rewards() -> None:
    d = golden("grpo_advantages")
    both = torch.stack([d["contig_rewards_a"], d["contig_rewards_b"]], 1)
    weights = tuple(d["contig_weights"].tolist())

    def found(rule: Rule, how: str, unbiased: bool = True) -> Tensor:
        return value(both, FOUR_OF_SIX, rule, Combination(how=how, weights=weights, unbiased=unbiased))

    torch.testing.assert_close(found(DanceGrpo(), "advantages"), d["adv_mixgrpo_aggr"].double(), **CLOSE)
    torch.testing.assert_close(found(DanceGrpo(), "gdpo"), d["adv_gdpo_prefgrpo"].double(), **CLOSE)
    torch.testing.assert_close(found(FlowFactory(), "gdpo", False), d["adv_gdpo_flowfactory"], **CLOSE)
    summed = value(both.double() @ d["contig_weights"], FOUR_OF_SIX, DanceGrpo())
    torch.testing.assert_close(found(DanceGrpo(), "rewards"), summed)
    with pytest.raises(ValueError, match="2 rewards and 3 weights"):
        value(both, FOUR_OF_SIX, DanceGrpo(), Combination(weights=(1.0, 2.0, 3.0)))


def test_ddpo_tracker() -> None:
    d = golden("grpo_advantages")
    rule = DdpoTracker(size=int(d["ddpo_buffer_size"]), min_count=int(d["ddpo_min_count"]))
    state: dict[str, Tensor] = {}
    for rewards, prompts, wanted in zip(d["ddpo_rewards"], d["ddpo_prompt_id"], d["ddpo_adv"], strict=True):
        found = advantages_of(rewards, prompts, rule, state=state).value
        torch.testing.assert_close(found, wanted, **CLOSE)
    assert {len(v) for v in state.values()} <= set(range(1, 11))


def test_trackers_of_several_rewards_are_apart() -> None:
    state: dict[str, Tensor] = {}
    rewards = torch.tensor([[1.0, 10.0], [3.0, 50.0]])
    rule, how = DdpoTracker(size=2, min_count=2), Combination(how="advantages")
    found = advantages_of(rewards, torch.zeros(2).long(), rule, how, state=state).value
    assert found.tolist() == pytest.approx([-2.0, 2.0], rel=1e-5)
    assert {k: v.tolist() for k, v in state.items()} == {
        "reward0/advantage.ddpo.0": [1.0, 3.0],
        "reward1/advantage.ddpo.0": [10.0, 50.0],
    }


def test_best_of_n() -> None:
    rewards = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    found = value(rewards, torch.zeros(6).long(), BestOfN(keep=2))
    assert (found != 0).tolist() == [True, False, False, False, False, True]
    torch.testing.assert_close(found[0], value(rewards, torch.zeros(6).long(), DanceGrpo())[0])


@pytest.mark.parametrize("name", [n for n in advantages.names() if n not in ("raw", "best_only", "value")])
def test_rules_in_general(name: str) -> None:
    """Groups stay apart and in place; a group without spread is 0, at any size and up to rounding."""
    rule: Rule = advantages.get(name)()
    assert rule.paper.startswith("https://")
    draw = torch.Generator().manual_seed(0)
    rewards, group = torch.randn(12, generator=draw).double(), torch.arange(3).repeat(4)
    found = value(rewards, group, rule)
    shuffle = torch.randperm(12, generator=draw)
    torch.testing.assert_close(value(rewards[shuffle], group[shuffle], rule), found[shuffle])
    for level in (0.0, 0.3, -1e8):
        flat = torch.where(group == 1, level * (1 + 1e-16 * torch.arange(12)), rewards)
        if name not in ("batch", "ddpo"):  # whose statistics are not the group's
            assert value(flat, group, rule)[group == 1].abs().max() == 0
        assert value(torch.full((12,), level), group, rule).abs().max() == 0


def test_rewards_that_are_not_finite_drop_their_group() -> None:
    rewards = torch.tensor([1.0, math.nan, 5.0, 7.0, 2.0, 2.0, math.inf, 0.0])
    group = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    made = advantages_of(rewards, group, DanceGrpo())
    assert made.keep.tolist() == [False, False, True, True, True, True, False, False]
    assert made.value.tolist() == pytest.approx([0, 0, -(0.5**0.5), 0.5**0.5, 0, 0, 0, 0])
    assert made.report(group) == {"groups": 4, "dropped": 0.5, "zero_spread": 0.25}
    nothing = advantages_of(torch.full((2,), math.nan), torch.zeros(2).long(), FlowGrpo())
    assert nothing.report(torch.zeros(2).long())["dropped"] == 1.0
    whole = advantages_of(rewards, group, FlowGrpo())
    without = advantages_of(rewards[2:6], group[2:6], FlowGrpo())
    assert whole.value[2:6].tolist() == without.value.tolist(), (
        "the bad rewards must not enter global statistics"
    )
    with pytest.raises(ValueError, match="7 rewards for 8 images"):
        advantages_of(rewards[:7], group, DanceGrpo())


def test_pareto() -> None:
    d = golden("inference_misc")
    assert torch.equal(nondominated(d["parrot_rewards"]), d["parrot_nondominated"])
    level = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
    assert nondominated(level).tolist() == [True, False, True, True], "equals do not beat each other"
    found = pareto_weights(d["parrot_rewards"].double(), d["parrot_condition"])
    torch.testing.assert_close(found, d["parrot_weight"], **CLOSE)
    made = advantages_of(
        d["parrot_rewards"],
        torch.zeros(12).long(),
        Raw(),
        Combination(how="pareto"),
        condition=d["parrot_condition"],
    )
    torch.testing.assert_close(made.value, d["parrot_weight"], **CLOSE)
    with pytest.raises(ValueError, match="reward that each image's prompt asked for"):
        advantages_of(d["parrot_rewards"], torch.zeros(12).long(), Raw(), Combination(how="pareto"))


def test_gated() -> None:
    """Style is compared among images that pass the check only: the prettiest failure stays behind."""
    check, style = torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.tensor([1.0, 3.0, 99.0, -99.0])
    rewards, group = torch.stack([check, style], 1), torch.zeros(4).long()
    found = value(rewards, group, DanceGrpo(), Combination(how="gated"))
    passed = math.sqrt(3) / 2  # of 1, 1, 0, 0 under the unbiased s
    assert found.tolist() == pytest.approx([passed - 0.5**0.5, passed + 0.5**0.5, -passed, -passed])
    assert value(rewards * 0, group, DanceGrpo(), Combination(how="gated")).tolist() == [0.0] * 4
    with pytest.raises(ValueError, match="needs the check's reward first"):
        value(check, group, DanceGrpo(), Combination(how="gated"))


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match=r"advantage\.ratio is 1\.0"):
        Trimmed(ratio=1.0)
    with pytest.raises(ValueError, match=r"min_count is 16 and size 8"):
        DdpoTracker(size=8)
