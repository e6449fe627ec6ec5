"""What can be done with a finished run: open it with its weights, export it merged or for other tools."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffalign.data import read
from diffalign.data.transform import decode
from diffalign.policy import Policy, load_policy
from diffalign.train import again
from diffalign.train.again import evaluate_again, export_again, generate_to, open_run
from diffalign.train.config import TrainConfig
from diffalign.train.progress import Screen
from tests.tiny import tiny_folder
from tests.train.runs import tiny_run


@pytest.mark.parametrize("adapter", ["{rank: 2, alpha: 4}", "null"])
@pytest.mark.slow
def test_a_run_opens_with_its_trained_weights(adapter: str, tmp_path: Path) -> None:
    run = tiny_run("sd", tmp_path, tmp_path / "run", "steps=2", "ema=0", f"policy.adapter={adapter}")
    _, policy = open_run(run.dir)
    for key, value in run.policy.trainable().items():
        torch.testing.assert_close(policy.trainable()[key], value, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_exports_go_to_new_folders_only(tmp_path: Path) -> None:
    run = tiny_run("sd", tmp_path, tmp_path / "run", "steps=2")
    export_again(run.dir, tmp_path / "kohya", merged=False, kohya=True)
    assert any(k.endswith(".alpha") for k in load_file(tmp_path / "kohya" / "kohya.safetensors"))
    export_again(run.dir, tmp_path / "merged", merged=True, kohya=False)
    assert load_policy(str(tmp_path / "merged")).family.name == "sd"
    with pytest.raises(FileExistsError, match="choose a new folder"):
        export_again(run.dir, tmp_path / "merged", merged=True, kohya=False)


@pytest.mark.slow
def test_an_unfinished_run_is_named(tmp_path: Path) -> None:
    run = tiny_run("sd", tmp_path, tmp_path / "run", "steps=1")
    (run.dir / "export" / "pytorch_lora_weights.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"did not finish.*--resume"):
        open_run(run.dir)


class Seen(Exception):
    """Ends a test at the place that it watches."""


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["{rank: 2}", "null"])
def test_pictures_are_made_on_the_best_device_in_the_runs_precision(
    adapter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run("sd", tmp_path, tmp_path / "run", "steps=1", f"policy.adapter={adapter}", "precision=bf16")

    def watch(config: TrainConfig, policy: Policy, screen: Screen) -> None:
        raise Seen(policy.device.type, policy.dtype)

    monkeypatch.setattr(again, "best_device", lambda: torch.device("meta"))
    monkeypatch.setattr(again, "paired_evaluation", watch)
    with pytest.raises(Seen) as seen:
        evaluate_again(run.dir, 2, 2)
    assert seen.value.args == ("meta", torch.bfloat16)


def test_prompts_are_drawn_on_the_best_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def watch(policy: Policy, *others: object) -> None:
        raise Seen(policy.device.type)

    monkeypatch.setattr(again, "best_device", lambda: torch.device("meta"))
    monkeypatch.setattr(again, "generate", watch)
    with pytest.raises(Seen, match="meta"):
        generate_to(tmp_path / "out", tiny_folder("sd", tmp_path), ["a red circle"], None, 1, 2, 4.0)


def test_generated_pictures_carry_their_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = torch.arange(4, dtype=torch.uint8).view(2, 2, 1, 1, 1).expand(-1, -1, 3, 8, 8)
    monkeypatch.setattr(again, "load_policy", lambda model: torch.nn.Identity())
    monkeypatch.setattr(again, "generate", lambda *arguments: pictures)

    def make() -> list[Path]:
        return generate_to(tmp_path / "out", "x", ["a red circle", "ein Stern"], None, 2, 2, 4.0)

    assert [p.name for p in make()] == ["0000-0.png", "0000-1.png", "0001-0.png", "0001-1.png"]
    one, two = read(tmp_path / "out")
    assert (one.prompt, two.prompt) == ("a red circle", "ein Stern")
    assert len(two.images) == 2
    assert decode(two.images[1].read(), "it").getpixel((0, 0)) == (3, 3, 3)
    for file in (tmp_path / "out").glob("*.png"):
        file.unlink()
    with pytest.raises(FileExistsError, match=r"0000-0\.txt exists"):
        make()


@pytest.mark.slow
def test_a_run_of_a_hub_model_may_fetch_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny_run("sd", tmp_path, tmp_path / "run", "steps=1", "policy.allow_download=true")

    def watch(model: str, adapter: object, *, text_length: int, allow_download: bool = False) -> None:
        raise Seen(allow_download)

    monkeypatch.setattr(again, "load_policy", watch)
    with pytest.raises(Seen, match="True"):
        open_run(run.dir)
