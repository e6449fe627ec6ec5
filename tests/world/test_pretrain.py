"""The pre-training loop: exact resume with all optimizers of a stage, going on from exported weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffalign.world.obedience import NOTES
from diffalign.world.pretrain import Budget, Loop
from diffalign.world.stages import Stage, adamw


class ToyStage(Stage):
    """Two matrices and a bias, under Muon and AdamW as the MMDiT is."""

    name, steps, learning_rate = "toy", 6, 1e-2

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
        self.modules = nn.ModuleDict({"layers": self.layers})

    def optimizers(self) -> list[torch.optim.Optimizer]:
        matrices = [p for p in self.modules.parameters() if p.ndim == 2]
        rest = [p for p in self.modules.parameters() if p.ndim != 2]
        muon = torch.optim.Muon(matrices, lr=1e-2, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
        return [muon, adamw(rest, 1e-2)]

    def loss(self, rng: np.random.Generator) -> Tensor:
        x = torch.tensor(rng.standard_normal((16, 4)), dtype=torch.float32)
        out: Tensor = (self.layers(x) - x[:, :2] + 0.1 * torch.randn(16, 2)).square().mean()
        return out

    def measure(self) -> dict[str, float]:
        return {"obedience": 0.5}

    def export(self, out: Path) -> None:
        out.mkdir(exist_ok=True)
        save_file(dict(self.layers.state_dict()), out / "toy.safetensors")

    def restore(self, out: Path) -> None:
        self.layers.load_state_dict(load_file(out / "toy.safetensors"))


def run(work: Path, out: Path, steps: int, stop: int = 0) -> Loop:
    work.mkdir(parents=True, exist_ok=True)
    loop = Loop(ToyStage(), work, out, Budget(steps=steps))
    while loop.step < (stop or steps):
        loop._one_step()
    loop._save(1.0)
    return loop


def test_resume_is_bit_equal(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", tmp_path, 6)
    run(tmp_path / "parts", tmp_path, 6, stop=3)
    parts = run(tmp_path / "parts", tmp_path, 6)
    states = [load_file(tmp_path / n / "toy.safetensors") for n in ("whole", "parts")]
    assert sum("moment/momentum_buffer" in k for k in states[0]) == 2
    assert sum("moment/exp_avg/" in k for k in states[0]) == 2
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())
    assert all(torch.equal(p, parts.weights[k]) for k, p in whole.weights.items())


def test_each_optimizer_follows_the_schedule(tmp_path: Path) -> None:
    loop = run(tmp_path / "work", tmp_path, 6)
    rates = [g["lr"] for o in loop.optimizers for g in o.param_groups]
    assert rates[0] == rates[1] < 1e-2 / 10  # still warming up, and nearly at the end of the cosine


def test_a_new_checkout_goes_on_from_the_exported_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "first").mkdir()
    Loop(ToyStage(), tmp_path / "first", tmp_path / "out", Budget(steps=4)).run()
    assert json.loads((tmp_path / "out" / NOTES).read_text())["toy"]["step"] == 4
    (tmp_path / "second").mkdir()
    loop = Loop(ToyStage(), tmp_path / "second", tmp_path / "out", Budget(steps=6))
    assert loop.step == 4
    assert "no resume state" in caplog.text
    exported = load_file(tmp_path / "out" / "toy.safetensors")
    assert all(torch.equal(p, exported[k]) for k, p in loop.stage.layers.state_dict().items())  # type: ignore[attr-defined]
