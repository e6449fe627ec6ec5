"""LoRA files at their true strength, and references that see no dropout."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffalign.policy import Policy, load_policy
from diffalign.policy.export import LORA_FILE, export_policy
from diffalign.policy.lora import ADAPTER, START, adapter_parameters
from tests.policy.test_policy import inputs, shake
from tests.tiny import tiny_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def first(folder: Path) -> Policy:
    """A LoRA of rank 2 and alpha 8 that does something, exported to folder/first."""
    policy = load_policy(tiny_folder("sd", folder), {"rank": 2, "alpha": 8})
    shake(policy)
    export_policy(policy, folder / "first")
    return policy


@pytest.mark.parametrize("alpha", [None, 8, 2])
def test_a_saved_lora_starts_at_its_own_strength(alpha: float | None, first: Policy, folder: Path) -> None:
    second = load_policy(
        tiny_folder("sd", folder), {"rank": 2, "alpha": alpha, "init_from": str(folder / "first")}
    )
    x, t, cond, sizes = inputs(first)
    torch.testing.assert_close(second.predict(x, t, cond, sizes), first.predict(x, t, cond, sizes))
    assert second.adapter is not None
    assert second.adapter.alpha == (alpha or 8)


def test_a_file_that_does_not_say_its_alpha_is_named(
    first: Policy, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_file(load_file(folder / "first" / LORA_FILE), tmp_path / "bare.safetensors")
    with caplog.at_level(logging.WARNING):
        load_policy(
            tiny_folder("sd", folder),
            {"rank": 2, "alpha": 8, "init_from": str(tmp_path / "bare.safetensors")},
        )
    assert "does not say its alpha" in caplog.text


def test_a_lora_with_other_alphas_in_places_is_refused(first: Policy, folder: Path, tmp_path: Path) -> None:
    metadata = {
        "lora_adapter_metadata": '{"unet.r": 2, "unet.lora_alpha": 8, "unet.alpha_pattern": {"x": 4}}'
    }
    save_file(load_file(folder / "first" / LORA_FILE), tmp_path / "odd.safetensors", metadata)
    with pytest.raises(ValueError, match="alpha_pattern"):
        load_policy(tiny_folder("sd", folder), {"rank": 2, "init_from": str(tmp_path / "odd.safetensors")})


@pytest.mark.slow
def test_the_reference_sees_no_dropout(first: Policy, folder: Path) -> None:
    policy = load_policy(
        tiny_folder("sd", folder),
        {"rank": 2, "alpha": 8, "dropout": 0.5, "init_from": str(folder / "first")},
    )
    policy.set_reference()
    policy.denoiser.train()
    x, t, cond, sizes = inputs(policy)
    with policy.reference():
        reference = policy.predict(x, t, cond, sizes)
    torch.testing.assert_close(reference, first.predict(x, t, cond, sizes))
    assert not torch.equal(policy.predict(x, t, cond, sizes), policy.predict(x, t, cond, sizes))


def test_the_start_has_the_dtype_of_the_policy(folder: Path) -> None:
    policy = load_policy(tiny_folder("sd", folder), {"rank": 2}).to(dtype=torch.float64)
    policy.set_reference("start")
    for name in (ADAPTER, START):
        assert {p.dtype for p in adapter_parameters(policy.denoiser, name).values()} == {torch.float64}
