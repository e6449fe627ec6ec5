"""Kept pictures of the base: found again only where they are the same."""

from __future__ import annotations

from pathlib import Path

import torch

from diffalign.evaluate.generate import Sampling, generate_base
from diffalign.policy import load_policy
from tests.tiny import tiny_folder


def test_pictures_of_another_precision_are_not_found(tmp_path: Path) -> None:
    made = []
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        policy = load_policy(tiny_folder("sd", tmp_path), {"rank": 2}).to(dtype=dtype)
        made.append(generate_base(policy, ["a red circle"], [0], Sampling(steps=2), tmp_path))
    assert len(list((tmp_path / "pictures").iterdir())) == 2
    assert torch.equal(made[0], made[2])


def test_pictures_of_another_schedule_are_not_found(tmp_path: Path) -> None:
    policy = load_policy(tiny_folder("sd", tmp_path), {"rank": 2})
    ask = (policy, ["a red circle"], [0], Sampling(steps=2), tmp_path)
    first = generate_base(*ask)
    policy.pipeline.scheduler.register_to_config(timestep_spacing="leading")
    assert not torch.equal(generate_base(*ask), first)
