"""Figures of a plan: the latent that is trained on, and the memory of every network on the device."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffalign.policy import load_policy
from diffalign.policy.meta import ENCODERS, meta_policy
from diffalign.train.align import load_recipe, with_canonical_beta
from diffalign.train.plan import GIB, latent_elements, make_plan
from tests.tiny import tiny_folder
from tests.train.runs import recipe


@pytest.mark.parametrize(("resolution", "beta"), [(64, 512.0), (128, 2048.0)])
def test_sum_conventions_count_the_latent_that_is_trained_on(
    resolution: int, beta: float, tmp_path: Path
) -> None:
    overrides = ["objective={name: dpo, beta: 1, beta_convention: paper_eq46}"]
    config = load_recipe(recipe("sd", tmp_path, tmp_path), [*overrides, f"data.resolution={resolution}"])
    policy = load_policy(tiny_folder("sd", tmp_path), {"rank": 2})
    config = with_canonical_beta(config, policy)
    assert getattr(config.objective, "beta", None) == beta
    assert make_plan(config, policy, 1).beta_sum == 1


def test_memory_counts_encoders_and_copies(tmp_path: Path) -> None:
    policy = load_policy(tiny_folder("sd", tmp_path), {"rank": 2})
    config = load_recipe(recipe("sd", tmp_path, tmp_path))
    parts = [policy.pipeline.vae, policy.pipeline.text_encoder]
    expected = sum(4 * p.numel() for part in parts for p in part.parameters()) / GIB
    assert make_plan(config, policy, 1).memory_gib["encoders and VAE"] == pytest.approx(expected)
    full = ["policy.adapter=null", "objective={name: sft}", "evaluate.prompts=4"]
    config = load_recipe(recipe("sd", tmp_path, tmp_path), full)
    whole = load_policy(tiny_folder("sd", tmp_path))
    memory = make_plan(config, whole, 1).memory_gib
    assert memory["copy of the base"] == pytest.approx(memory["weights"])
    cut = make_plan(config, whole, 2, shards=2).memory_gib
    for part in ("weights", "copy of the base", "gradients and optimizer"):
        assert cut[part] == pytest.approx(memory[part] / 2)
    assert cut["encoders and VAE"] == memory["encoders and VAE"]


@pytest.mark.parametrize("model", sorted(ENCODERS))
@pytest.mark.slow
def test_published_models_have_their_encoders(model: str, tmp_path: Path) -> None:
    policy = meta_policy(model, None, 32)
    config = load_recipe(recipe("sd", tmp_path, tmp_path))
    memory = make_plan(config, policy, 1).memory_gib
    assert memory["encoders and VAE"] == pytest.approx(4 * sum(ENCODERS[model]) / GIB)
    assert latent_elements(policy, 512) == 64 * 64 * (16 if "diffusion-3" in model else 4)
