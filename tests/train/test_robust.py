"""Weights of groups in training: by hand, towards the harder one, alike after a resume or when shared out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from diffalign.data.loader import Batch
from diffalign.data.records import DataError
from diffalign.personalize.robust import MaxMin
from diffalign.train.align import align, load_recipe
from diffalign.train.checkpoint import CheckpointError
from diffalign.train.people import RobustConfig
from diffalign.train.robust import GroupWeights, make_group_weights
from diffalign.train.run import RunFolder
from diffalign.train.trainer import Trainer
from tests.train.people_runs import both, named, robust
from tests.train.runs import launch, records
from tests.train.test_trainer import weights

STATE = "checkpoints/step-{:06d}/state.safetensors"


def same(value: Tensor) -> Tensor:
    return value


def batch(*samples: int, weight: float = 1.0) -> Batch:
    """Pairs of these records."""
    rows = torch.tensor(samples).repeat_interleave(2)
    n = len(rows)
    zeros = torch.zeros(n)
    return Batch(
        mean=zeros, logvar=None, cond={}, group=torch.arange(len(samples)).repeat_interleave(2),
        role=torch.tensor([1, -1] * len(samples)), soft=None, score=None, weight=torch.full((n,), weight),
        sizes=zeros, sample=rows, epoch=rows,
    )  # fmt: skip


def test_a_weighed_mean_is_that_of_the_groups_means() -> None:
    """Three pairs of one group and one of another, in two parts: each group's pairs share its weight."""
    made = GroupWeights(MaxMin(floor=0.0), torch.tensor([0, 0, 0, 1]), "cpu")
    made.q = torch.tensor([0.25, 0.75], dtype=torch.float64)
    parts = made.weighed([batch(0, 1), batch(3, 2)], same)
    found = [part.weight.tolist() for part in parts]
    assert found[0] == pytest.approx([0.25 / 3] * 4)
    assert found[1] == pytest.approx([0.75, 0.75, 0.25 / 3, 0.25 / 3])
    half = made.weighed([batch(0, 3, weight=0.2)], same)[0].weight.tolist()
    assert half == pytest.approx([0.25, 0.25, 0.75, 0.75]), "weights of the data count within a group"
    two = made.weighed([batch(0)], lambda counts: counts + torch.tensor([2.0, 1.0]))[0].weight.tolist()
    assert two == pytest.approx([0.25 / 3] * 2), "other processes' pairs are counted"


def test_the_harder_group_gains_weight_whatever_its_size() -> None:
    made = GroupWeights(MaxMin(step=0.1), torch.tensor([0, 0, 0, 1]), "cpu")
    figures: dict[str, Tensor] = {}
    for _ in range(10):
        (part,) = made.weighed([batch(0, 1, 2, 3)], same)
        loss = torch.tensor([0.5, 0.5, 0.5, 0.9])
        made.saw(loss, part.weight[::2], torch.tensor([0, 0, 0, 1]))
        figures = made.step(same)
    assert made.q[1] > 0.59
    torch.testing.assert_close(made.q[1] / made.q[0], torch.tensor(0.4).double().exp(), rtol=1e-5, atol=0)
    assert figures["worst_group"] == 1
    assert float(figures["worst_loss"]) == pytest.approx(0.9)
    assert float(figures["worst_share"]) == pytest.approx(0.9 * float(made.q[1]) + 0.05)


def test_groups_are_raters_or_those_of_a_file(tmp_path: Path) -> None:
    made = make_group_weights(RobustConfig(), named(), "cpu")
    assert made is not None
    assert made.of.tolist() == [0, 1, 1, 1] * 2
    file = tmp_path / "groups.json"
    config = RobustConfig(groups=str(file))
    with pytest.raises(FileNotFoundError, match=r"\{rater: group\}"):
        make_group_weights(config, named(), "cpu")
    file.write_text(json.dumps({"anna": "a"}))
    with pytest.raises(DataError, match="no group for 1 raters, 'ben' for one"):
        make_group_weights(config, named(), "cpu")
    file.write_text(json.dumps({"anna": "a", "ben": "a"}))
    with pytest.raises(DataError, match="there is one"):
        make_group_weights(config, named(), "cpu")
    with pytest.raises(DataError, match="8 of 8 records do not say who judged"):
        make_group_weights(RobustConfig(), records(), "cpu")
    assert make_group_weights(None, records(), "cpu") is None


def test_options_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    options = robust(tmp_path, tmp_path)
    options["people"] = options["people"] | {"robust": {"step": 0}}
    with pytest.raises(ValueError, match="step must be above 0"):
        load_recipe(options)


@pytest.mark.slow
def test_a_cut_short_run_keeps_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = robust(tmp_path, tmp_path / "whole", steps=5, checkpoint_every=3, accumulate=2)
    whole = align(options, records=named())
    row = RunFolder(root=whole.dir).rows()[-1]
    assert {"worst_group", "worst_share", "worst_loss"} <= set(row)
    clip = Trainer._clip

    def broken(self: Trainer) -> Tensor:
        if self.step == 4:
            raise KeyboardInterrupt
        return clip(self)

    monkeypatch.setattr(Trainer, "_clip", broken)
    with pytest.raises(KeyboardInterrupt):
        align(options | {"output": str(tmp_path / "cut")}, records=named())
    monkeypatch.setattr(Trainer, "_clip", clip)
    again = align(options, records=named(), resume=tmp_path / "cut")
    one, other = (load_file(run.dir / STATE.format(5)) for run in (whole, again))
    assert set(one) == set(other)
    assert all(torch.equal(one[k], other[k]) for k in one)
    q = one["further/groups"]
    assert float(q.sum()) == pytest.approx(1.0)
    assert not torch.equal(q, torch.full_like(q, 0.5))
    three = [replace(r, rater="cora") if i == 1 else r for i, r in enumerate(named())]
    with pytest.raises((CheckpointError, DataError), match=r"2 groups of people|cannot resume|another"):
        align(options, records=three, resume=tmp_path / "cut")


@pytest.mark.slow
def test_two_processes_draw_the_directions_and_weigh_the_groups_of_one(tmp_path: Path) -> None:
    both(tmp_path, tmp_path / "1")
    launch(2, str(tmp_path), str(tmp_path / "2"), module="tests.train.people_runs")
    for name in ("directed", "robust"):
        runs = [tmp_path / processes / name for processes in ("1", "2")]
        losses = [[row["loss"] for row in RunFolder(root=run).rows()] for run in runs]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3), name
        one, two = (weights(run) for run in runs)
        assert all(torch.allclose(one[k], two[k], rtol=1e-3, atol=1e-4) for k in one), name
        states = [load_file(run / STATE.format(3)) for run in runs]
        if name == "robust":
            torch.testing.assert_close(
                states[0]["further/groups"], states[1]["further/groups"], rtol=1e-4, atol=0
            )
