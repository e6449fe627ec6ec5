"""What can only be used later is looked at before any weight is loaded."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import DistributedType

from diffalign.config import ConfigError
from diffalign.train import align as aligning
from diffalign.train import trackers
from diffalign.train.align import align, load_recipe
from diffalign.train.preflight import preflight
from diffalign.train.setup import PATIENCE, cpu_threads, make_accelerator
from diffalign.train.shard import check_distribution, fsdp_options
from scorers.registry import RegistryError
from tests.train.runs import recipe, records


@pytest.fixture
def no_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("the weights were loaded first")

    monkeypatch.setattr(aligning, "make_policy", never)
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["evaluate={prompts: 4, judges: [shapes-larg]}"], RegistryError, "shapes-larg"),
        (["evaluate={prompts: 4, judges: [pickscore=nowhere]}"], FileNotFoundError, "nowhere"),
        (["evaluate={prompts: 4}"], ValueError, "evaluate.judges is empty"),
        (["evaluate={prompts: 4, prompt_file: no.txt, judges: [pickscore]}"], FileNotFoundError, "no.txt"),
        (["validate={every: 2, judge: shapes-larg}"], RegistryError, "shapes-larg"),
        (["log.trackers=[wandb]"], ModuleNotFoundError, "names wandb, which is not installed"),
        (["data.path=nowhere"], FileNotFoundError, "no preferences at"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named_before_weights_are_loaded(
    overrides: list[str], error: type[Exception], message: str, no_policy: None, tmp_path: Path
) -> None:
    given = None if overrides[0].startswith("data") else records()
    with pytest.raises(error, match=message):
        align(recipe("sd", tmp_path, tmp_path / "run"), *overrides, records=given)


def test_real_prompts_need_a_prompt_file(tmp_path: Path) -> None:
    options = ["evaluate={prompts: 4, judges: [shapes-large]}"]
    config = load_recipe(recipe("sd", tmp_path, tmp_path / "run"), options)
    preflight(config, records())
    real = [replace(r, prompt="a photo of a cat") for r in records()]
    with pytest.raises(ConfigError, match=r"prompt_file is null.*a photo of a cat.*evaluate.prompts=0"):
        preflight(config, real)
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(f"a photo of {i} cats" for i in range(20)))
    preflight(
        load_recipe(recipe("sd", tmp_path, tmp_path / "run"), [*options, f"evaluate.prompt_file={file}"]),
        real,
    )
    file.write_text("a photo of a cat")
    both = [*options, f"evaluate.prompt_file={file}", "validate.every=2"]
    config = load_recipe(recipe("sd", tmp_path, tmp_path / "run"), both)
    with pytest.raises(ConfigError, match="no prompt in the part called"):
        preflight(config, real)


def test_the_accelerator_keeps_its_hands_off_gradients_and_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    accelerator = make_accelerator(load_recipe(recipe("sd", tmp_path, tmp_path / "run")))
    assert accelerator.gradient_accumulation_steps == 1
    assert accelerator.init_handler.timeout == PATIENCE


@pytest.mark.parametrize(
    ("variables", "overrides", "message"),
    [
        ({"FSDP_VERSION": "1", "FSDP_RESHARD_AFTER_FORWARD": "FULL_SHARD"}, [], "version 1.*gpu-fsdp2"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, [], "fsdp_offload_params"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, [], r"policy\.gradient_checkpointing=true"),
        ({}, ["precision=fp16"], "precision=bf16"),
        ({}, ["optim={name: adafactor}"], r"optim\.name=adamw"),
    ],
)  # fmt: skip
def test_what_cannot_be_cut_up_is_refused(
    variables: dict[str, str],
    overrides: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fsdp2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"}
    content = recipe("sd", tmp_path, tmp_path / "run")
    assert fsdp_options() is None
    for name, value in fsdp2.items():
        monkeypatch.setenv(name, value)
    check_distribution(DistributedType.FSDP, load_recipe(content), fsdp_options())
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"launched with FSDP.*{message}"):
        check_distribution(DistributedType.FSDP, load_recipe(content, overrides), fsdp_options())


@pytest.mark.parametrize("kind", [DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM])
def test_other_launchers_that_cut_the_model_up_are_refused(kind: DistributedType, tmp_path: Path) -> None:
    config = load_recipe(recipe("sd", tmp_path, tmp_path / "run"))
    check_distribution(DistributedType.MULTI_GPU, config, None)
    with pytest.raises(ConfigError, match=rf"launched with {kind.value}.*gpu-ddp\.yaml.*gpu-fsdp2\.yaml"):
        check_distribution(kind, config, None)


def test_accelerate_launch_leaves_no_core_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert cpu_threads(0, 1) == torch.get_num_threads(), "what the user set is left alone"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert cpu_threads(0, 1) == 8
    assert cpu_threads(0, 4) == 2
    assert cpu_threads(3, 4) == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert cpu_threads(0, 32) == 1
