"""Velocity errors of the two committed pipelines, and the table that states them."""

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from diffalign.world.velocity import SIGMAS, dit_velocity, velocity_errors


@pytest.mark.slow
def test_both_pipelines_know_most_of_the_velocity_and_least_of_it_in_noise() -> None:
    found = velocity_errors(Path("samples/shapes"), pictures=12)
    assert list(found) == [f"{s:g}" for s in SIGMAS]
    for name in ("unet", "dit"):
        errors = [found[s][name] for s in found]
        # predicting no velocity at all would cost the noise and the picture: 2
        assert max(errors) < 1
        assert errors[-1] == max(errors)


@pytest.mark.slow
def test_the_velocity_is_that_of_each_row() -> None:
    pipeline = DiffusionPipeline.from_pretrained("samples/shapes/dit").to(torch.float32)
    x, sigma = torch.randn(2, 8, 8, 8), torch.tensor([0.5, 0.9]).view(2, 1, 1, 1)
    prompts = ["a red circle on a blue background", "a large green square"]
    with torch.no_grad():
        both = dit_velocity(pipeline, x, sigma, prompts)
        for i in range(2):
            alone = dit_velocity(pipeline, x[i : i + 1], sigma[i : i + 1], prompts[i : i + 1])
            torch.testing.assert_close(both[i : i + 1], alone, rtol=1e-4, atol=1e-5)
