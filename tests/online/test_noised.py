"""Pictures that are noised again: which times, which noise, whose predictions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from diffalign.diffusion.corrupt import seeded_noise
from diffalign.objectives.forward_process import mean_square
from diffalign.online.noised import NoisedPass, noised_table
from diffalign.online.tables import NoisedTable
from diffalign.online.weights import ParameterSets
from diffalign.policy import Policy
from tests.online.by_hand import FLOW, VP, harvest
from tests.online.conftest import shake

Policies = Callable[[str], Policy]


def table(config_of: Any, name: str, process: Any = FLOW, **noise: Any) -> NoisedTable:
    pictures = harvest([1.0, -1.0, 0.5], [0, 0, 1], process, keep=[True, True, False])
    return noised_table(pictures, config_of(name, noise=noise))


@pytest.mark.parametrize("process", [FLOW, VP])
def test_each_draw_falls_into_its_own_part(config_of: Any, process: Any) -> None:
    found = table(config_of, "nft", process, draws=4, low=0.2, high=0.6)
    t = found.t.double() / (1 if process.is_flow else process.steps)
    for draw in range(4):
        part = t[3 * draw : 3 * draw + 3]
        slack = 0 if process.is_flow else 1 / process.steps  # timesteps are rounded down
        assert 0.2 + 0.1 * draw - slack <= float(part.min()) <= float(part.max()) <= 0.3 + 0.1 * draw
    assert len(found.t.unique()) == 12
    assert len(found.noise.unique()) == 12
    assert found.x0.flatten(1)[:, 0].tolist() == [0, 1, 2] * 4
    assert found.score.tolist() == [1.0, -1.0, 0.5] * 4
    assert found.weight.tolist() == [1.0, 1.0, 0.0] * 4


@pytest.mark.parametrize("process", [FLOW, VP])
def test_scheduled_times_are_those_of_the_rollout(config_of: Any, process: Any) -> None:
    found = table(config_of, "nft", process, draws=40, scheduled=True)
    own = harvest([0.0], [0], process).run.sampler.schedule.times
    assert set(found.t.tolist()) == set(own.tolist())
    assert found.t.dtype == own.dtype
    drawn = table(config_of, "nft", process, draws=40)
    nearest = (drawn.t[:, None].double() - own.double()).abs().argmin(1)
    assert torch.equal(found.t, own[nearest])


@pytest.mark.parametrize("name", ["dgpo", "nft"])
def test_pictures_of_a_prompt_share_time_and_noise(config_of: Any, name: str) -> None:
    found = table(config_of, name, draws=3, per="group")
    t, noise = found.t.view(3, 3), found.noise.view(3, 3)  # (draws, pictures)
    assert torch.equal(t[:, 0], t[:, 1])
    assert not bool((t[:, 0] == t[:, 2]).any())
    assert torch.equal(noise[:, 0], noise[:, 1])
    assert noise[:, 0].unique().numel() == 1  # one noise at all times
    assert noise[0, 0] != noise[0, 2]


def test_a_prompt_comes_whole_at_each_draw(config_of: Any) -> None:
    found = table(config_of, "crd", draws=2)
    assert found.unit.tolist() == [0, 0, 2, 1, 1, 3]
    assert found.group.tolist() == found.unit.tolist()
    assert table(config_of, "nft", draws=2).unit.unique().numel() == 6


def test_another_iteration_draws_anew(config_of: Any) -> None:
    assert torch.equal(table(config_of, "nft").noise, table(config_of, "nft").noise)


@pytest.mark.parametrize("family", [pytest.param("sd", marks=pytest.mark.slow), "sd3"])
def test_predictions_are_those_of_the_right_weights(
    family: str, policies: Policies, config_of: Any, iteration: Any
) -> None:
    policy = policies(family)
    config = config_of("awm", "rollout.steps=2", "groups.images=2", "noise.draws=1", family=family)
    sets = ParameterSets(policy.trainable(), config.weights)
    found = iteration(config, policy, sets)
    part = noised_table(found, config)
    on_noised = NoisedPass(config, policy, policy.reference)
    with torch.no_grad():
        old = on_noised.plain(part, found)
        with policy.reference():
            reference = on_noised.plain(part, found)
    shake(policy, 0.1, seed=2)
    sets.updated()
    shake(policy, 0.1, seed=3)
    with torch.no_grad():
        own = on_noised.plain(part, found)
        with sets.of_anchor():
            anchor = on_noised.plain(part, found)
    assert min(float((a - b).abs().max()) for a, b in [(own, old), (own, anchor), (old, anchor)]) > 1e-3
    batch = on_noised(part, found, sets)
    noise = seeded_noise(part.noise.tolist(), part.x0)
    target = policy.process.target(part.x0, noise, part.t)
    torch.testing.assert_close(batch.tensors.x_t, policy.process.add_noise(part.x0, noise, part.t))
    torch.testing.assert_close(batch.error, mean_square(own - target))
    torch.testing.assert_close(batch.extra["old_error"], mean_square(old - target))
    torch.testing.assert_close(batch.extra["ema_pred"], anchor)
    torch.testing.assert_close(batch.tensors.ref_pred, reference)
    torch.testing.assert_close(batch.ref_error, mean_square(reference - target))
    assert batch.error.requires_grad
    assert not batch.extra["old_error"].requires_grad
    weight = policy.process.weight(batch.t, "x0_equivalent")
    assert weight.min() > 0


@pytest.mark.parametrize("family", [pytest.param("sd", marks=pytest.mark.slow), "sd3"])
def test_the_slope_is_that_of_the_clean_latent(
    family: str, policies: Policies, config_of: Any, iteration: Any
) -> None:
    """NFT: d x0_hat / d pred, which is sigma on flow and s / a of an eps model."""
    policy = policies(family)
    config = config_of("nft", "rollout.steps=2", "groups.images=2", "noise.draws=1", family=family)
    sets = ParameterSets(policy.trainable(), config.weights)
    found = iteration(config, policy, sets)
    batch = NoisedPass(config, policy, policy.reference)(noised_table(found, config), found, sets)
    a, s = policy.process.coefficients(batch.t)
    torch.testing.assert_close(batch.extra["x0_slope"], s if family == "sd3" else s / a)


def test_a_guided_reference_is_that_of_crd(policies: Policies, config_of: Any, iteration: Any) -> None:
    policy = policies("sd3")
    changes = ("rollout.steps=2", "groups.images=2", "noise.draws=1", "objective.kl_guidance=3.0")
    config = config_of("crd", *changes)
    found = iteration(config, policy, ParameterSets(policy.trainable(), config.weights))
    part = noised_table(found, config)
    own = NoisedPass(config, policy, policy.reference)
    with torch.no_grad(), policy.reference():
        prompted = own.plain(part, found)
        empty = policy.collate_prompts(policy.encode_prompts([""] * len(part)))
        x_t = policy.process.add_noise(part.x0, seeded_noise(part.noise.tolist(), part.x0), part.t)
        unprompted = policy.predict(x_t, part.t, empty)
    assert float((prompted - unprompted).abs().max()) > 1e-3
    batch = own(part, found, ParameterSets(policy.trainable(), config.weights))
    torch.testing.assert_close(batch.tensors.ref_pred, unprompted + 3 * (prompted - unprompted))
    assert batch.ref_error is None
    unguided = config_of("crd", *changes, "objective.kl_guidance=1.0")
    plain = NoisedPass(unguided, policy, policy.reference)
    batch = plain(part, found, ParameterSets(policy.trainable(), config.weights))
    torch.testing.assert_close(batch.tensors.ref_pred, prompted)
    assert (
        config_of("crd", "objective.kl=0.0", "objective.kl_guidance=3.0").objective.guidance_of_reference()
        == 1
    )
