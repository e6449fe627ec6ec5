"""Tiny policies and iterations that the online tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from diffalign.online.collect import Collector, Harvest
from diffalign.online.config import OnlineConfig
from diffalign.online.groups import Groups
from diffalign.online.rewards import RewardLog
from diffalign.online.run import load_online
from diffalign.online.weights import ParameterSets
from diffalign.policy import Policy, load_policy
from tests.online.runs import PROMPTS, recipe
from tests.tiny import tiny_folder


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("online")


@pytest.fixture(scope="session")
def loaded(models: Path) -> Callable[[str], Policy]:
    """Policies by family, with a LoRA that does something."""
    found: dict[str, Policy] = {}

    def get(family: str) -> Policy:
        if family not in found:
            policy = load_policy(tiny_folder(family, models), {"rank": 2, "alpha": 4})
            policy.set_reference()
            policy.denoiser.eval()
            shake(policy, 0.05)
            found[family] = policy
        return found[family]

    return get


@pytest.fixture
def policies(loaded: Callable[[str], Policy]) -> Iterator[Callable[[str], Policy]]:
    """The same, whose weights are put back after the test."""
    kept: dict[str, Any] = {}

    def get(family: str) -> Policy:
        policy = loaded(family)
        kept.setdefault(family, {k: p.detach().clone() for k, p in policy.trainable().items()})
        return policy

    yield get
    for family, weights in kept.items():
        with torch.no_grad():
            for k, p in loaded(family).trainable().items():
                p.copy_(weights[k])
                p.grad = None


@pytest.fixture
def config_of(models: Path, tmp_path: Path) -> Callable[..., OnlineConfig]:
    """A checked recipe of an objective; no model is read."""

    def make(name: str, *overrides: str, family: str = "sd3", **blocks: Any) -> OnlineConfig:
        raw = recipe(name, family, models, tmp_path / "run", model="nowhere") | blocks
        return load_online(raw, overrides)

    return make


@pytest.fixture
def iteration(tmp_path: Path) -> Callable[..., Harvest]:
    """One iteration's harvest of a policy; its parameter sets begin with it."""

    def make(config: OnlineConfig, policy: Policy, sets: ParameterSets, number: int = 0) -> Harvest:
        groups = Groups(PROMPTS, config.groups, config.seed, config.words)
        collect = Collector(config, policy, groups, Accelerator(cpu=True), RewardLog(tmp_path / "log", 0))
        sets.begin()
        return collect(number, sets, {})

    return make


def shake(policy: Policy, size: float, seed: int = 1) -> None:
    """Move the trained weights."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter += size * torch.randn(parameter.shape, generator=generator)
