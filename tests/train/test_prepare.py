"""From records to a loader: dropped prompts are embedded as the pipeline embeds them when it samples."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from diffalign.train.align import load_recipe
from diffalign.train.prepare import build_loader
from diffalign.train.progress import Screen
from diffalign.train.setup import make_policy
from tests.train.runs import recipe, records


@pytest.mark.parametrize(("family", "zero"), [("sd", False), ("sdxl", True)])
@pytest.mark.slow
def test_dropped_prompts_are_those_of_sampling(family: str, zero: bool, tmp_path: Path) -> None:
    overrides = ["data.prompt_dropout=1"]
    config = load_recipe(recipe(family, tmp_path, tmp_path / "run"), overrides)
    policy = make_policy(config, torch.device("cpu"))
    loader = build_loader(config, policy, records(), Accelerator(cpu=True), Screen(False, 1, 1, 1))
    cond = next(iter(loader)).cond
    assert [bool((v == 0).all()) for v in cond.values()] == [zero] * len(cond)
    torch.testing.assert_close(cond["text"][:1], unconditional(policy.pipeline))


def unconditional(pipeline: object) -> torch.Tensor:
    """What the pipeline itself embeds for guidance."""
    embedded = pipeline.encode_prompt(  # type: ignore[attr-defined]
        prompt="a red circle",
        device=torch.device("cpu"),
        num_images_per_prompt=1,
        do_classifier_free_guidance=True,
    )
    negative: torch.Tensor = embedded[1]
    return negative
