"""Ranges of the options: what cannot train is refused by name, before anything is loaded."""

from __future__ import annotations

import pytest

from diffalign.train.align import load_recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("keep_checkpoints=-1", "keep_checkpoints is -1; it must be at least 1"),
        ("keep_checkpoints=0", "keep_checkpoints is 0"),
        ("checkpoint_every=-1", "checkpoint_every is -1"),
        ("optim.learning_rate=-1", "optim: learning_rate is -1"),
        ("optim.warmup=-3", "optim: warmup is -3"),
        ("optim.betas=[0.9, 1.0]", "optim: betas are"),
        ("data.prompt_dropout=2", r"data: prompt_dropout is 2.*in \[0, 1\]"),
        ("data.resolution=50", "data: resolution is 50.*multiple of 8: take 48"),
        ("data.world.per_prompt=1", "data.world: per_prompt is 1"),
        ("timesteps={name: discrete, steps: [1500]}", "timesteps.steps is .1500.*0 to 999"),
        ("timesteps={name: discrete, steps: []}", "timesteps.steps is"),
        ("validate.seeds=0", "validate: seeds is 0"),
        ("evaluate.prompts=-1", "evaluate: prompts is -1"),
        ("log.every=0", "log: every is 0"),
        ("precision=fp64", "fp64, in which no pictures"),
    ],
)
def test_values_out_of_range_are_named(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe("training/recipes/shapes-unet-dpo.yaml", [override])
