"""Small parts of the trainer: where units are in time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from diffalign.objectives import Denoised
from diffalign.objectives.steps import Steps
from diffalign.online.trainer import OnlineTrainer
from tests.online.by_hand import FLOW, VP


def trainer(**parts: Any) -> Any:
    return SimpleNamespace(**parts)


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
