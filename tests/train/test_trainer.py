"""The loop on tiny models: the start is exact, it learns, accumulation and processes do not change it."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from PIL import Image
from safetensors.torch import load_file

from diffalign.attention.processors import PlainAttention
from diffalign.config import ConfigError
from diffalign.data.loader import Loader
from diffalign.train.align import align
from tests.train.runs import launch, records, tiny_run

each = Loader.__iter__


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "export" / "pytorch_lora_weights.safetensors")


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3"])
def test_starts_at_log_two_and_learns(
    family: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One batch again and again, with its own noise: on fresh noise a random network shows luck, not learning.
    monkeypatch.setattr(Loader, "__iter__", lambda loader: itertools.repeat(next(each(loader))))
    run = tiny_run(
        family, folder, tmp_path / "run", "steps=12", "data.prompt_dropout=0", "optim.learning_rate=3e-3"
    )
    lines = rows(run.dir)
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert lines[0]["accuracy"] == 0.5
    assert sum(line["loss"] for line in lines[-3:]) / 3 < math.log(2) - 0.2
    assert lines[-1]["accuracy"] > 0.5
    assert {"win_gap", "lose_gap", "gradient_factor", "grad_norm", "learning_rate", "win_gap_t0"} <= set(
        lines[0]
    )


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.slow
def test_full_training_and_precisions(precision: str, folder: Path, tmp_path: Path) -> None:
    run = tiny_run(
        "sd",
        folder,
        tmp_path / "run",
        "policy.adapter=null",
        f"precision={precision}",
        "steps=3",
        "optim.learning_rate=1e-4",
    )
    assert rows(run.dir)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert (run.dir / "export" / "unet" / "diffusion_pytorch_model.safetensors").exists()


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.slow
def test_full_training_without_reference_is_compared_with_its_base(
    precision: str, folder: Path, tmp_path: Path
) -> None:
    overrides = ["objective={name: sft}", "policy.adapter=null", f"precision={precision}", "steps=1"]
    overrides += ["validate={every: 1, prompts: 2}", "evaluate={prompts: 0, steps: 2}", "batch=2"]
    run = tiny_run("sd", folder, tmp_path / "run", *overrides)
    sheet = np.asarray(Image.open(run.dir / "samples" / "step-000001.png")).astype(int)
    base, model = np.split(sheet, 2, axis=1)
    assert 0 < abs(base - model).mean() < 8, "one small step, so nearly but not quite the base's pictures"


def test_fp16_without_a_gpu_is_refused_early(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="fp16, which needs a GPU"):
        tiny_run("sd", folder, tmp_path / "run", "precision=fp16")


@pytest.mark.slow
def test_gradient_checkpointing_changes_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = torch.utils.checkpoint.checkpoint, []

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments[0])
        return original(*arguments, **options)

    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", counted)
    plain = tiny_run("sd", folder, tmp_path / "a", "steps=3")
    assert not calls
    saving = tiny_run("sd", folder, tmp_path / "b", "steps=3", "policy.gradient_checkpointing=true")
    assert calls, "nothing was recomputed"
    for key, value in weights(plain.dir).items():
        torch.testing.assert_close(weights(saving.dir)[key], value, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_an_attention_backend_trains_the_same_and_is_logged(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = tiny_run("sd", folder, tmp_path / "a", "steps=2")
    assert "diffusers' own" in capsys.readouterr().err
    named = tiny_run("sd", folder, tmp_path / "b", "steps=2", "policy.attention=sdpa_math")
    shown = capsys.readouterr().err
    assert "attention   sdpa_math" in shown
    assert "not sdpa_cudnn" in shown
    assert type(named.policy.denoiser.mid_block.attentions[0].transformer_blocks[0].attn1.processor) is (
        PlainAttention
    )
    for key, value in weights(plain.dir).items():
        torch.testing.assert_close(weights(named.dir)[key], value, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_backend_that_cannot_train_here_is_refused_early(folder: Path, tmp_path: Path) -> None:
    for name, reason in (("fast", "none of auto"), ("flex", "needs a GPU"), ("diffusers:sage", "")):
        with pytest.raises(ConfigError, match=f"policy.attention.*{reason}"):
            tiny_run("sd", folder, tmp_path / "a", "steps=1", f"policy.attention={name}")
    assert not (tmp_path / "a").exists()


def same_gradients(one: Path, other: Path, rel: float) -> None:
    """Adam and clipping hide a wrong scale of the gradient from the weights, so its norm is compared."""
    for a, b in zip(rows(one), rows(other), strict=True):
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=rel)


@pytest.mark.slow
@pytest.mark.parametrize("clip", [1.0, 0.0])
def test_accumulation_equals_the_big_batch(clip: float, folder: Path, tmp_path: Path) -> None:
    shared = ["precision=fp64", "data.latents=mode", f"optim.clip_norm={clip}"]
    big = tiny_run("sd", folder, tmp_path / "a", *shared)
    small = tiny_run("sd", folder, tmp_path / "b", *shared, "accumulate=4")
    for one, other in zip(rows(big.dir), rows(small.dir), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-9)
    same_gradients(big.dir, small.dir, 1e-9)
    for key, value in weights(big.dir).items():
        torch.testing.assert_close(weights(small.dir)[key], value, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "steps", "clip", "bound"),
    [("fp64", 10, 1.0, 1e-9), ("fp64", 10, 0.0, 1e-9), ("fp32", 1, 1.0, 1e-5), ("fp32", 10, 1.0, 1e-4)],
)
def test_two_processes_equal_one(
    precision: str, steps: int, clip: float, bound: float, folder: Path, tmp_path: Path
) -> None:
    shared = [f"precision={precision}", f"steps={steps}", f"optim.clip_norm={clip}"]
    launch(1, "sd", str(folder), str(tmp_path / "one"), *shared)
    launch(2, "sd", str(folder), str(tmp_path / "two"), *shared)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    state = next((tmp_path / "two" / "checkpoints").glob("step-*")) / "state.json"
    assert json.loads(state.read_text())["meta"]["processes"] == 2, "the launcher started one process only"
    same_gradients(tmp_path / "one", tmp_path / "two", 1e-9 if precision == "fp64" else 1e-2)
    largest = max(float((one[k].double() - two[k].double()).abs().max()) for k in one)
    assert largest <= bound
    for a, b in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=bound * 10)
        assert a["accuracy"] == pytest.approx(b["accuracy"], abs=0.13 if precision == "fp32" else 1e-9)


def test_winners_of_pairs_train_sft(folder: Path, tmp_path: Path) -> None:
    run = tiny_run(
        "sd", folder, tmp_path / "run", "objective={name: sft}", "policy.reference=none", "steps=2"
    )
    assert "error_win" in rows(run.dir)[0]
    assert "accuracy" not in rows(run.dir)[0]


@pytest.mark.slow
def test_metrics_do_not_depend_on_validation(folder: Path, tmp_path: Path) -> None:
    from tests.train.runs import recipe

    content = recipe("sd", folder, tmp_path / "a")
    plain = align(content, "steps=3", records=records())
    watched = align(
        content,
        "steps=3",
        f"output={tmp_path / 'b'}",
        "validate={every: 2, prompts: 2}",
        "evaluate.steps=2",
        records=records(),
    )
    assert [r["loss"] for r in rows(plain.dir)] == [r["loss"] for r in rows(watched.dir)]
    assert (watched.dir / "samples" / "step-000002.png").exists()


def test_trackers_get_every_step(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = tiny_run("sd", folder, tmp_path / "run", "steps=3", "log.trackers=[tensorboard]")
    assert list((run.dir / "tensorboard").rglob("events*"))


def test_optimizers(folder: Path, tmp_path: Path) -> None:
    run = tiny_run("sd", folder, tmp_path / "run", "steps=2", "optim={name: adafactor, learning_rate: 1e-4}")
    assert rows(run.dir)[1]["loss"] != rows(run.dir)[0]["loss"]
    with pytest.raises(RuntimeError, match="adamw8bit needs"):
        tiny_run("sd", folder, tmp_path / "x", "optim.name=adamw8bit")


@pytest.mark.parametrize("source", ["pickapic/train.parquet", "folder", "folder_wl", "votes/votes.jsonl"])
@pytest.mark.slow
def test_trains_on_every_format(source: str, folder: Path, tmp_path: Path) -> None:
    from tests.train.runs import recipe

    content = recipe("sd", folder, tmp_path / "run")
    content["data"] |= {"path": f"samples/preferences/{source}", "max_pairs": 8}
    run = align(content, "steps=2")
    assert rows(run.dir)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_data_that_do_not_fit_are_named(folder: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from diffalign.data.records import DataError

    likes = [replace(r, kind="labels", values=(1.0,), images=r.images[:1]) for r in records()]
    from tests.train.runs import recipe

    content = recipe("sd", folder, tmp_path / "run")
    with pytest.raises(
        DataError, match=r"needs pairs, the data hold labels; take objective kto or .* or sft, or"
    ):
        align(content, records=likes)
    with pytest.raises(DataError, match="empty"):
        align(content, records=[])
    with pytest.raises(FileNotFoundError, match="no preferences at"):
        align(content, "data.path=nowhere")
    with pytest.raises(ValueError, match="cannot be cut"):
        align(content, "batch=5", "accumulate=2", records=records())


@pytest.mark.slow
def test_skipped_images_are_listed_in_the_run(folder: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from diffalign.data.records import BytesImage, DataError
    from tests.train.runs import recipe

    good = records()
    broken = replace(good[0], images=(BytesImage(data=b"", where="empty.png"), good[0].images[1]))
    equal = replace(good[1], images=(good[1].images[0],) * 2, source="pair 1")
    content = recipe("sd", folder, tmp_path / "run")
    run = align(content, "steps=1", "data.max_bad_share=0.5", records=[broken, equal, *good[2:]])
    listed = json.loads((run.dir / "skipped.json").read_text())
    assert listed["unreadable"][0]["image"] == "empty.png"
    assert listed["equal_pairs"] == ["pair 1"]
    with pytest.raises(DataError, match="cannot be read"):
        align(content, "steps=1", "data.max_bad_share=0.01", records=[broken, *good[2:]])
