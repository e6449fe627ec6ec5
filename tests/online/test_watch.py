"""The watch over groups that teach nothing, ratios that are clipped, and reward hacking."""

from __future__ import annotations

import json
import logging

import pytest

from diffalign.online.blocks import StopConfig
from diffalign.online.watch import Watch


def fed(watch: Watch, rewards: list[float], wins: list[float]) -> list[bool]:
    found = []
    for step, (reward, win) in enumerate(zip(rewards, wins, strict=True), 1):
        watch.iteration(step, {"reward/a": reward})
        found.append(watch.validation(step, win))
    return found


def test_a_run_ends_when_reward_rises_and_the_held_out_win_rate_falls() -> None:
    watch = Watch(stop=StopConfig(drop=0.05, patience=2))
    assert fed(watch, [1, 2, 3, 4, 5], [0.5, 0.7, 0.64, 0.66, 0.6]) == [False] * 4 + [False]
    assert watch.validation(6, 0.6)  # the second in a row that is more than 0.05 below 0.7


def test_a_fall_of_both_is_no_reward_hacking() -> None:
    watch = Watch(stop=StopConfig(drop=0.05, patience=1))
    assert fed(watch, [3, 2, 1], [0.7, 0.5, 0.4]) == [False, False, False]


def test_without_a_stop_rule_it_only_warns(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert fed(Watch(stop=None), [1, 2, 3, 4], [0.7, 0.5, 0.5, 0.5]) == [False] * 4
    assert "the policy pleases the reward alone" in caplog.text


def test_counts_go_through_a_checkpoint() -> None:
    one = Watch(stop=StopConfig(patience=2))
    fed(one, [1, 2], [0.7, 0.5])
    other = Watch(stop=StopConfig(patience=2))
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert one == other
    assert [w.validation(3, 0.5) for w in (one, other)] == [True, True]
    fresh = Watch(stop=None)
    fresh.load_state_dict(json.loads(json.dumps(Watch(stop=None).state_dict())))
    assert fresh == Watch(stop=None)


def test_flat_groups_and_clipped_ratios_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    watch = Watch(stop=None, patience=3)
    for step in range(5):
        watch.iteration(step, {"zero_spread": 0.9, "clipped": 0.6 if step else 0.1})
    assert caplog.text.count("have no spread") == caplog.text.count("ratios are clipped") == 1
