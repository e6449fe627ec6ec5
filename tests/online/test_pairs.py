"""Fresh pictures as pairs, lists, likes and winners, and the losses on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from diffalign.data.loader import Batch
from diffalign.diffusion.corrupt import Clean, Corrupted, Corruptor, seeded_noise
from diffalign.objectives.online_pairs import OnlinePairs
from diffalign.online.noised import NoisedPass
from diffalign.online.pairs import pair_table
from diffalign.online.tables import NoisedTable
from diffalign.online.weights import ParameterSets
from diffalign.policy import Policy
from tests.online.by_hand import harvest


def table(
    config_of: Any, inner: dict[str, Any], pictures: Any, rule: str = "best_worst", **blocks: Any
) -> Any:
    objective = {"name": "online_pairs", "objective": inner, "rule": rule}
    return pair_table(pictures, config_of("online_pairs", objective=objective, **blocks))


def members(found: NoisedTable, draws: int = 2) -> list[tuple[float, int, int]]:
    """(picture, unit, role) of the first draw, units counted from 0."""
    m = len(found) // draws
    x = found.x0[:m, 0, 0, 0].tolist()
    return [(x[i], int(found.group[i]) // draws, int(found.role[i])) for i in range(m)]


PICTURES = ([1.0, 3.0, 2.0, 0.0, 5.0, 5.0, 7.0, 8.0], [0, 0, 0, 0, 1, 1, 2, 2])


def test_pairs_by_rule(config_of: Any) -> None:
    found = table(config_of, {"name": "dpo"}, harvest(*PICTURES))
    assert members(found) == [(1, 0, 1), (3, 0, -1), (7, 1, 1), (6, 1, -1)]
    found = table(config_of, {"name": "dpo"}, harvest(*PICTURES), rule="mean_minus_2sd")
    assert members(found) == [(1, 0, 1), (3, 0, -1), (7, 1, 1), (6, 1, -1)]
    found = table(config_of, {"name": "dpo"}, harvest(*PICTURES), rule="rank_then_sift")
    assert members(found) == [
        (1, 0, 1), (3, 0, -1), (2, 1, 1), (0, 1, -1), (7, 2, 1), (6, 2, -1),
    ]  # fmt: skip


def test_options_of_the_rule_are_the_recipe_s(config_of: Any) -> None:
    """Scores 1, 3, 2, 0 have mean 1.5 and s.d. 1.12: at mean - 0.5 s.d. the nearest is 1, not 0."""
    pictures = harvest([1.0, 3.0, 2.0, 0.0], [0, 0, 0, 0])
    found = table(config_of, {"name": "dpo"}, pictures, "mean_minus_2sd", pairing={"deviations": 0.5})
    assert members(found) == [(1, 0, 1), (0, 0, -1)]


def test_sides_of_a_pair_share_time_but_not_noise_unless_asked(config_of: Any) -> None:
    for per, same in (("image", False), ("group", True)):
        found = table(config_of, {"name": "dpo"}, harvest(*PICTURES), noise={"draws": 2, "per": per})
        for unit in found.unit.unique():
            own = found.unit == unit
            assert found.t[own].unique().numel() == 1
            assert (found.noise[own].unique().numel() == 1) is same
        assert found.t.unique().numel() == 4


def test_lists_likes_and_winners(config_of: Any) -> None:
    pictures = harvest(*PICTURES)
    ranked = table(config_of, {"name": "plackett_luce"}, pictures)
    assert members(ranked) == [
        (0, 0, -1), (1, 0, 1), (2, 0, -1), (3, 0, -1), (6, 1, -1), (7, 1, 1),
    ]  # fmt: skip
    assert ranked.score[:6].tolist() == [1.0, 3.0, 2.0, 0.0, 7.0, 8.0]
    liked = table(config_of, {"name": "kto"}, pictures)
    assert members(liked) == [
        (0, 0, -1), (1, 1, 1), (2, 2, 1), (3, 3, -1), (6, 4, -1), (7, 5, 1),
    ]  # fmt: skip
    best = table(config_of, {"name": "sft"}, pictures)
    assert members(best) == [(1, 0, 1), (7, 1, 1)]


def test_groups_without_finite_rewards_or_spread_make_no_rows(config_of: Any) -> None:
    pictures = harvest([1.0, 2.0, 5.0, 5.0], [0, 0, 1, 1], keep=[False, False, True, True])
    found = table(config_of, {"name": "dpo"}, pictures)
    assert len(found) == 0
    assert found.noise.dtype == torch.int64


def test_rewards_count_by_their_weights(config_of: Any) -> None:
    """A reward of weight -1 is one that is to be low; one of weight 0 decides nothing."""
    rewards = torch.tensor([[0.0, 5.0], [1.0, 0.0], [0.5, 9.0]]).double()
    pictures = harvest([0.0, -1.0, -0.5], [0, 0, 0], rewards=rewards)
    blocks = {"rewards": [{"scorer": "a", "weight": -1.0}, {"scorer": "b", "weight": 0.0}]}
    assert members(table(config_of, {"name": "dpo"}, pictures, **blocks)) == [(0, 0, 1), (1, 0, -1)]


@dataclass(frozen=True, kw_only=True)
class Given(Corruptor):
    """Times and noise of a table."""

    part: NoisedTable

    def corrupt(self, rows: Clean) -> Corrupted:
        torch.testing.assert_close(rows.x0, self.part.x0, rtol=1e-4, atol=1e-5)
        noise, t = seeded_noise(self.part.noise.tolist(), rows.x0), self.part.t
        return Corrupted(
            x_t=rows.process.add_noise(rows.x0, noise, t), t=t, target=rows.process.target(rows.x0, noise, t),
            units=rows.units,
        )  # fmt: skip


@pytest.mark.parametrize("family", [pytest.param("sd", marks=pytest.mark.slow), "sd3"])
def test_losses_are_those_of_the_offline_trainer(
    family: str, policies: Callable[[str], Policy], config_of: Any, iteration: Any
) -> None:
    """On the same latents, times and noise, through the offline Forward."""
    from accelerate import Accelerator

    from diffalign.train.align import load_recipe
    from diffalign.train.forward import Forward

    policy = policies(family)
    config = config_of("online_pairs", "rollout.steps=2", "groups.images=2", "noise.draws=1", family=family)
    assert isinstance(config.objective, OnlinePairs)
    sets = ParameterSets(policy.trainable(), config.weights)
    found = iteration(config, policy, sets)
    part = pair_table(found, config)
    assert len(part) == 4
    online = NoisedPass(config, policy, policy.reference)(part, found, sets)
    loss, _ = config.objective.loss(online)

    offline = load_recipe({
        "policy": {"model": "nowhere"}, "objective": {"name": "dpo", "beta": 500.0}, "data": {"path": "x"},
    })  # fmt: skip
    n, vae = len(part), policy.pipeline.vae.config
    batch = Batch(
        mean=part.x0 / vae.scaling_factor + vae.shift_factor, logvar=None, soft=None, score=None,
        group=part.group.unique(return_inverse=True)[1], role=part.role, weight=torch.ones(n),
        sizes=torch.zeros(n, 6).long(), sample=torch.arange(n), epoch=torch.zeros(n).long(),
        cond={k: v[part.prompt] for k, v in found.guided.cond.items()},
    )  # fmt: skip
    offline = replace(offline, corruptor=Given(part=part))
    (rows,) = Forward(offline, policy, Accelerator(cpu=True), lambda phase: None)(batch)
    wanted, _ = offline.objective.loss(rows)
    torch.testing.assert_close(loss, wanted, rtol=1e-3, atol=1e-4)
    assert float((loss.detach() - 0.6931).abs().max()) > 0.01
