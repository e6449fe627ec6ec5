"""What can be done with a finished run: open it with its weights, export it merged or for other tools."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffalign.policy import load_policy
from diffalign.train.again import export_again, open_run
from tests.train.runs import tiny_run


@pytest.mark.parametrize("adapter", ["{rank: 2, alpha: 4}", "null"])
def test_a_run_opens_with_its_trained_weights(adapter: str, tmp_path: Path) -> None:
    run = tiny_run("sd", tmp_path, tmp_path / "run", "steps=2", "ema=0", f"policy.adapter={adapter}")
    _, policy = open_run(run.dir)
    for key, value in run.policy.trainable().items():
        torch.testing.assert_close(policy.trainable()[key], value, rtol=1e-6, atol=1e-7)


def test_exports_go_to_new_folders_only(tmp_path: Path) -> None:
    run = tiny_run("sd", tmp_path, tmp_path / "run", "steps=2")
    export_again(run.dir, tmp_path / "kohya", merged=False, kohya=True)
    assert any(k.endswith(".alpha") for k in load_file(tmp_path / "kohya" / "kohya.safetensors"))
    export_again(run.dir, tmp_path / "merged", merged=True, kohya=False)
    assert load_policy(str(tmp_path / "merged")).family.name == "sd"
    with pytest.raises(FileExistsError, match="choose a new folder"):
        export_again(run.dir, tmp_path / "merged", merged=True, kohya=False)


def test_an_unfinished_run_is_named(tmp_path: Path) -> None:
    run = tiny_run("sd", tmp_path, tmp_path / "run", "steps=1")
    (run.dir / "export" / "pytorch_lora_weights.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"did not finish.*--resume"):
        open_run(run.dir)
