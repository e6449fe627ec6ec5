"""Training with people: two who see every pair the other way round, and a run that goes on exactly."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diffalign.data.records import BytesImage, DataError, Record
from diffalign.personalize import attach
from diffalign.personalize.profiles import write_profiles
from diffalign.personalize.users import Users
from diffalign.train.align import align, load_recipe
from diffalign.train.finish import Run
from diffalign.train.optim import RELATIVE, set_learning_rate
from diffalign.train.raters import parameter_groups
from diffalign.train.trainer import Trainer
from tests.personalize.helpers import float_pipeline, latents
from tests.tiny import tiny_pipeline
from tests.train.runs import recipe, records

OBJECTIVE = {
    "name": "own_other", "pair": {"name": "dpo", "beta": 500.0}, "weight": 1.0, "beta": 500.0,
}  # fmt: skip
PEOPLE = {"encoder": {"name": "table", "tokens": 4, "width": 24}, "encoder_rate": 0.02, "branch_rate": 0.02}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def opposites(n: int = 4) -> list[Record]:
    """Every pair twice: as anna sees it, and the other way round."""
    anna = [replace(r, rater="anna") for r in records(n)]
    return anna + [replace(r, rater="ben", values=(0.0, 1.0)) for r in anna]


def content(folder: Path, output: Path, **changes: Any) -> dict[str, Any]:
    return recipe("sd", folder, output) | {"objective": OBJECTIVE, "people": PEOPLE} | changes


def rows(run: Run) -> list[dict[str, Any]]:
    lines = (run.dir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "timing"} for line in lines]


def black_and_white() -> list[Record]:
    """Four prompts, black and white pictures; anna prefers black and ben white."""
    sides = tuple(BytesImage.from_array(np.full((64, 64, 3), grey, np.uint8)) for grey in (0, 255))
    return [replace(record, images=sides) for record in opposites()]


@pytest.mark.slow
def test_two_opposite_people_are_told_apart(folder: Path, tmp_path: Path) -> None:
    pipe = tiny_pipeline("sd")
    pipe.vae.register_to_config(scaling_factor=6.0)  # black and white are a standard deviation apart
    pipe.save_pretrained(tmp_path / "model")
    people = PEOPLE | {"encoder_rate": 0.01, "branch_rate": 0.01}
    options = content(folder, tmp_path / "run", people=people, steps=50, checkpoint_every=0)
    options["policy"] = options["policy"] | {"model": str(tmp_path / "model")}
    options["data"] = options["data"] | {"latents": "mode", "prompt_dropout": 0.0}
    options["timesteps"] = {"name": "discrete", "steps": [100, 200, 300, 400]}
    found = rows(align(options, records=black_and_white()))
    assert found[0]["own_minus_other"] == 0
    for name in ("own_minus_other", "margin"):  # which no model that serves both alike has above 0
        last = [row[name] for row in found[-10:]]
        assert np.mean(last) > 2 * np.std(last) / 10**0.5, name
    assert np.mean([row["own_beats_other"] for row in found[-10:]]) > 0.6


READER = {"tokens": 4, "width": 24, "feature": 6, "inner": 8, "depth": 1, "heads": 2, "positions": 0}
TABLE = {"name": "table", "tokens": 4, "width": 24}
PROFILE = {"name": "profile", **READER}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "encoder"),
    [("kto", TABLE), ("mapo", TABLE), ("dpo", {"name": "composition", "encoder": PROFILE}), ("dpo", PROFILE)],
    ids=["kto", "mapo", "composition", "profile"],
)
def test_people_are_a_condition_of_other_objectives_and_by_other_encoders(
    objective: str, encoder: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    data = opposites()
    if objective == "kto":
        data = [replace(r, kind="labels") for r in data]
    people = PEOPLE | {"encoder": encoder}
    if encoder is not TABLE:
        states = {"anna": torch.randn(3, 6), "ben": torch.randn(2, 6)}
        people["profiles"] = str(write_profiles(tmp_path / "profiles.safetensors", states, "vlm"))
    options = content(
        folder, tmp_path / "run", objective={"name": objective}, people=people, checkpoint_every=0
    )
    run = align(options | {"steps": 3}, records=data)
    made = Users(run.dir / "export" / "users")
    anna, ben = made.vector("anna"), made.vector("ben")
    assert (anna - ben).abs().max() > 1e-4
    layers = load_file(made.folder / "diffalign_user_adapter.safetensors")
    values = [v for name, v in layers.items() if name.startswith("layers.") and ".v." in name]
    assert all(v.abs().max() > 0 for v in values)  # they began at zero


@pytest.mark.slow
def test_a_cut_short_run_goes_on_exactly_and_its_people_are_given_out(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = content(folder, tmp_path / "whole", steps=6, checkpoint_every=4)
    whole = align(options, records=opposites())
    clip = Trainer._clip

    def broken(self: Trainer) -> torch.Tensor:
        if self.step == 5:
            raise KeyboardInterrupt
        return clip(self)

    monkeypatch.setattr(Trainer, "_clip", broken)
    with pytest.raises(KeyboardInterrupt):
        align(options | {"output": str(tmp_path / "cut")}, records=opposites())
    monkeypatch.setattr(Trainer, "_clip", clip)
    again = align(options, records=opposites(), resume=tmp_path / "cut")
    assert rows(again) == rows(whole)
    part = "checkpoints/step-000006/state.safetensors"
    one, other = load_file(whole.dir / part), load_file(again.dir / part)
    assert set(one) == set(other)
    assert "policy/user_encoder.people" in one
    assert "ema/user_encoder.people" in one
    assert all(torch.equal(one[k], other[k]) for k in one)

    pipe = float_pipeline("sd")
    before = latents(pipe)
    attached = attach(pipe, whole.dir / "export" / "users")
    anna, ben = (latents(attached.use(name).pipe) for name in ("anna", "ben"))
    assert not torch.equal(anna, ben)
    assert not torch.equal(anna, before)
    assert torch.equal(latents(attached.nobody().pipe), before)


def test_a_run_of_the_branch_alone_leaves_the_lora(folder: Path, tmp_path: Path) -> None:
    people = PEOPLE | {"only": True, "dispersion": 0.1}
    run = align(content(folder, tmp_path / "run", steps=1, people=people), records=opposites())
    assert not any("lora_" in name for name in run.policy.trainable())
    assert "dispersion" in rows(run)[0]
    assert run.policy.users is not None
    config = load_recipe(content(folder, tmp_path / "run"))
    assert config.people is not None
    parameters = [*run.policy.users.parameters(), torch.nn.Parameter(torch.zeros(2))]
    groups = parameter_groups(run.policy.users, parameters, config.people, config.optim)
    assert sum(len(g["params"]) for g in groups) == len(parameters)
    optimizer = torch.optim.SGD(groups, lr=1.0)
    set_learning_rate(optimizer, 5e-4)
    rates = [g["lr"] for g in optimizer.param_groups]
    assert rates[0] == 5e-4
    assert rates[1:] == pytest.approx([0.01] * (len(rates) - 1))
    assert all(RELATIVE in g for g in optimizer.param_groups[1:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"people": None}, "add a people block"),
        ({"people": PEOPLE | {"dropout": 2}}, r"people: dropout is 2.*in \[0, 1\]"),
        ({"people": PEOPLE | {"encoder": {"name": "table", "tokens": 1}}}, "tokens is 1"),
        ({"people": PEOPLE | {"encoder": {"name": "direction"}}}, "people.encoder"),
        ({"people": PEOPLE | {"encoder": {"name": "few_shot"}}}, r"branch\.features"),
        ({"people": PEOPLE | {"info_nce": 0.1}}, "encoder of votes"),
        ({"data": {"path": "x", "reference_errors": "kept"}}, "reference_errors cannot be kept"),
        ({"policy": {"model": "x", "adapter": None}}, "beside a LoRA"),
    ],
)
def test_what_does_not_go_with_people_is_refused_before_anything_is_loaded(
    changes: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe(content(folder, tmp_path, **changes))


def test_data_that_do_not_say_who_judged_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no record names who judged"):
        align(content(folder, tmp_path / "none"), records=records(4))
    some = opposites()
    some[-1] = replace(some[-1], rater=None)
    with pytest.raises(DataError, match="1 of 8 records do not say who judged"):
        align(content(folder, tmp_path / "some"), records=some)
    with pytest.raises(DataError, match="one person has judged all"):
        align(content(folder, tmp_path / "one"), records=opposites()[:4])
