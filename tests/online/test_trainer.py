"""Small parts of the trainer: what the loss scaler of fp16 leaves out, and where units are in time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from diffalign.objectives import Denoised
from diffalign.objectives.steps import Steps
from diffalign.online.trainer import OnlineTrainer
from tests.online.by_hand import FLOW, VP

INF = float("inf")


def trainer(**parts: Any) -> Any:
    return SimpleNamespace(**parts)


@pytest.mark.parametrize(
    ("scaled", "norms", "wanted"),
    [
        (False, [1.0, 2.0], {"grad_norm": 2.0}),
        (False, [1.0, INF], {"grad_norm": INF}),  # diverged
        (True, [1.0, INF, 2.0], {"grad_norm": 2.0, "skipped": 0.0}),
        (True, [INF, INF], {"grad_norm": INF, "skipped": 1.0}),
    ],
)
def test_norms_of_updates_that_were_made(scaled: bool, norms: list[float], wanted: dict[str, float]) -> None:
    own = trainer(accelerator=trainer(scaler=object() if scaled else None))
    found = OnlineTrainer._norms(own, [torch.tensor(n) for n in norms])
    assert {k: float(v) for k, v in found.items()} == wanted
    assert OnlineTrainer._is_skipped(own, torch.tensor(INF)) is scaled
    assert OnlineTrainer._is_skipped(own, torch.tensor(1.0)) is False


@pytest.mark.parametrize(("process", "t"), [(FLOW, [0.1, 0.9]), (VP, [100, 900])])
def test_figures_are_put_where_they_are_in_time(process: Any, t: list[float]) -> None:
    own = trainer(
        policy=trainer(process=process),
        objective=trainer(units=lambda batch, values: values),
    )
    zero = torch.zeros(2)
    batch = Denoised(error=zero, ref_error=None, group=zero.long(), role=zero.long(), t=torch.tensor(t))
    assert OnlineTrainer._time_shares(own, batch, zero).tolist() == pytest.approx([0.1, 0.9])
    steps = Steps(logp=zero, group=zero.long(), role=zero.long())
    assert OnlineTrainer._time_shares(own, steps, zero).tolist() == [0.0, 0.0]
