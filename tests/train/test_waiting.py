"""A training step never waits for the device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diffalign.device import send
from diffalign.train.align import align
from diffalign.train.trainer import Trainer
from tests.train.runs import recipe, records


def test_towards_a_gpu_memory_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: steps.append("pin") or self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *a, **k: steps.append(f"to {a} {k}") or self)
    send(torch.ones(2), "cpu")
    send(torch.ones(2), "cuda")
    assert steps == ["to ('cpu',) {'non_blocking': True}", "pin", "to ('cuda',) {'non_blocking': True}"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_training_step_makes_no_host_wait(
    family: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, seen = Trainer._optimizer_step, []

    def strict(self: Trainer) -> object:
        # the first two steps may wait: optimizer state, kernels and memory are made there
        torch.cuda.set_sync_debug_mode("error" if self.step >= 2 else "default")
        try:
            return step(self)
        finally:
            torch.cuda.set_sync_debug_mode("default")
            seen.append(self.step)

    monkeypatch.setattr(Trainer, "_optimizer_step", strict)
    align(
        recipe(family, tmp_path, tmp_path / "run"),
        "steps=5",
        f"precision={precision}",
        "error_weight=eps_equivalent",
        records=records(),
    )
    assert seen == [0, 1, 2, 3, 4]
