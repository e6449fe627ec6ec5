"""A model cut up over two processes (gloo) trains, resumes, shows and exports as one that is whole.

The runs are launched with the configuration for GPUs, which a variable of accelerate keeps on the CPU.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diffalign.data.split import normalise
from diffalign.evaluate.generate import Sampling, generate
from diffalign.policy.lora import adapter_parameters
from diffalign.train.again import evaluate_again, open_for_pictures
from diffalign.train.checkpoint import Checkpoint, load_checkpoint
from diffalign.train.finish import evaluation_prompts
from diffalign.train.shard import frame, gathered, like, local, put, whole
from diffalign.train.validate import save_sheet
from tests.tiny import tiny_folder
from tests.train.runs import launch, records, tiny_run

SHOW = ["checkpoint_every=1", "keep_checkpoints=20", "validate={every: 10, prompts: 2}", "evaluate.steps=2"]
OPTIONS = {
    "lora": [*SHOW, "policy.adapter.rank=3"],  # three rows over two processes
    "full": [
        *SHOW, "policy.adapter=null", "optim.learning_rate=1e-4", "accumulate=2",
        "evaluate.prompts=2", "evaluate.seeds=2", "evaluate.judges=['tests.tiny:Brightness']",
    ],
    "half": [
        "steps=2", "precision=bf16", "policy.reference=start", "policy.gradient_checkpointing=true",
        "policy.adapter.rank=1",  # nothing is left for the second process
    ],
}  # fmt: skip
FAMILY = {"lora": "sd", "full": "sd3", "half": "sd3"}


@dataclass
class Runs:
    """Folders of the same runs, by name: of one process, and cut up over two."""

    models: Path
    one: Path
    two: Path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("shards")
    found = Runs(models=folder / "models", one=folder / "one", two=folder / "two")
    jobs: list[str] = []
    for name, options in OPTIONS.items():
        tiny_folder(FAMILY[name], found.models)
        tiny_run(FAMILY[name], found.models, found.one / name, *options)
        # a cache of its own, or the base's pictures would be those that the run of one process made
        own = [*options, f"data.cache={folder / 'cache'}"]
        jobs += ["--", FAMILY[name], str(found.models), str(found.two / name), "--cut-up", *own]
    resume = ["--resume", str(found.two / "full" / "checkpoints" / "step-000007")]
    jobs += ["--", "sd3", str(found.models), str(found.two / "full"), "--cut-up", *resume]
    launch(2, *jobs[1:], config="gpu-fsdp2.yaml")
    return found


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def saved(run: Path, step: int, under: str = "") -> Checkpoint:
    return load_checkpoint(run / "checkpoints" / under / f"step-{step:06d}")


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Largest difference of tensors of the same names and shapes."""
    assert {k: v.shape for k, v in one.items()} == {k: v.shape for k, v in other.items()}
    return max(float((one[k].double() - other[k].double()).abs().max()) for k in one)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora", "full"])
def test_cut_up_trains_as_whole(name: str, runs: Runs) -> None:
    one, two = runs.one / name, runs.two / name
    for step, bound in ((1, 1e-5), (10, 1e-4)):
        a, b = saved(one, step), saved(two, step)
        assert b.meta["processes"] == 2
        assert difference(a.part("policy"), b.part("policy")) <= bound
        assert difference(a.part("ema"), b.part("ema")) <= bound
        assert {k: v.shape for k, v in a.part("optim").items()} == {
            k: v.shape for k, v in b.part("optim").items()
        }
    for a, b in zip(rows(one), rows(two), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-4)
        # Adam and clipping hide a wrong scale of the gradient from the weights
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)


@pytest.mark.slow
def test_half_precision_over_a_frozen_base_and_a_frozen_start(runs: Runs) -> None:
    one, two = rows(runs.one / "half"), rows(runs.two / "half")
    assert two[0]["loss"] == pytest.approx(math.log(2), abs=1e-6), "policy and reference differ at the start"
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=0.02)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=0.05)
    weights = saved(runs.two / "half", 2).part("policy")
    assert {v.dtype for v in weights.values()} == {torch.float32}


@pytest.mark.slow
def test_resumed_cut_up_is_bit_equal(runs: Runs) -> None:
    before, after = saved(runs.two / "full", 10, "aside-1"), saved(runs.two / "full", 10)
    assert before.tensors.keys() == after.tensors.keys()
    assert all(torch.equal(v, after.tensors[k]) for k, v in before.tensors.items())


@pytest.mark.slow
def test_one_process_goes_on_from_it(runs: Runs, tmp_path: Path) -> None:
    quiet = ["evaluate.prompts=0", "validate.every=0"]
    for name, steps in (("full", 7), ("lora", 10)):
        source, copy = runs.two / name, tmp_path / name
        shutil.copytree(source, copy)
        place = copy / "checkpoints" / "step-000007"
        run = tiny_run(FAMILY[name], runs.models, copy, f"steps={steps}", *quiet, resume=place)
        weights = {k: p.detach() for k, p in run.policy.trainable().items()}
        bound = 0 if steps == 7 else 1e-4  # at 7 nothing is trained: the weights are those of the file
        assert difference(weights, saved(source, steps).part("policy")) <= bound


@pytest.mark.slow
def test_diffusers_loads_the_exports(runs: Runs) -> None:
    from diffusers import SD3Transformer2DModel, StableDiffusionPipeline

    average = saved(runs.two / "full", 10).part("ema")
    loaded = SD3Transformer2DModel.from_pretrained(runs.two / "full" / "export" / "transformer")
    assert difference({k: p.detach() for k, p in loaded.named_parameters()}, average) == 0
    card = (runs.two / "full" / "export" / "README.md").read_text()
    assert "= SD3Transformer2DModel.from_pretrained" in card
    pipeline = StableDiffusionPipeline.from_pretrained(runs.models / "sd")
    pipeline.load_lora_weights(runs.two / "lora" / "export")
    lora = adapter_parameters(pipeline.unet, "default_0")
    lora = {k.replace("default_0", "default"): v.detach() for k, v in lora.items()}
    assert difference(lora, saved(runs.two / "lora", 10).part("ema")) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora", "full"])
def test_pictures_are_those_of_the_whole_model(name: str, runs: Runs, tmp_path: Path) -> None:
    run = runs.two / name
    config, policy = open_for_pictures(run)
    captions = {normalise(r.prompt) for r in records()}
    prompts = evaluation_prompts(config, "select", captions)[:2]
    seeds = list(range(500, 500 + config.validate.seeds))
    sampling = Sampling(steps=2)
    model = generate(policy, prompts, seeds, sampling)
    with policy.base():
        save_sheet(generate(policy, prompts, seeds, sampling), model, tmp_path / "sheet.png")
    sheets = [
        np.asarray(Image.open(p), int) for p in (tmp_path / "sheet.png", run / "samples" / "step-000010.png")
    ]
    assert np.abs(sheets[0] - sheets[1]).max() <= 1
    if name == "lora":
        return
    again = json.loads(evaluate_again(run, prompts=2, seeds=2).read_text())["comparisons"][0]
    report = json.loads((run / "report.json").read_text())["comparisons"][0]
    assert report["mean_gain"] == pytest.approx(again["mean_gain"], abs=1e-3)


def test_an_empty_frame_is_filled_and_whole_tensors_pass() -> None:
    layer = torch.nn.Linear(2, 3).requires_grad_(False)
    empty = frame(layer)
    assert {p.device.type for p in empty.parameters()} == {"meta"}
    assert not any(p.requires_grad for p in empty.parameters())
    assert layer.weight.device.type == "cpu"
    tensor, target = torch.ones(2), torch.zeros(2)
    put(target, tensor)
    assert target.tolist() == [1, 1]
    assert whole(tensor) is tensor
    assert local(tensor) is tensor
    assert like(tensor, target) is tensor
    assert gathered({"a": tensor}, keep=False)["a"] is tensor
