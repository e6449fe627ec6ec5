"""For whom pictures are made: how people and directions are named, and where their adapter is found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from diffalign.cli import app
from diffalign.personalize.adapter import save_adapter
from diffalign.personalize.users import UsersError
from diffalign.personalize.wanted import Wanted, adapter_of, attach_wanted
from diffalign.policy.lora import AdapterConfig
from tests.personalize.helpers import kept_pipeline, latents, saved, trained
from tests.tiny import tiny_folder, tiny_pipeline


def test_people_are_named_with_or_without_weights() -> None:
    assert Wanted(user="anna").people() == "anna"
    assert Wanted(user="anna:0.7, ben:0.3").people() == {"anna": 0.7, "ben": 0.3}
    assert Wanted(user="anna,ben").people() == {"anna": 0.5, "ben": 0.5}
    assert Wanted(user="anna:2").people() == {"anna": 2.0}
    assert Wanted(user="anna:1,ben:-0.5").called == "anna-1-ben--0.5"
    assert Wanted(direction="hps=1").called == "hps-1"
    assert not Wanted().somebody


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"user": "anna", "direction": "hps=1"}, "exclude each other"),
        ({"scale": 0.5}, r"--user-scale is 0\.5, and nobody is named"),
        ({"guidance": 2.0}, "--user-guidance is 2.0, and nobody is named"),
        ({"user": "anna", "scale": float("nan")}, "finite"),
        ({"user": "anna:0.7,ben"}, "all of them a weight or none"),
        ({"user": "anna,anna"}, "each person once"),
        ({"user": "anna:much"}, "'anna:much' is no NAME or NAME:WEIGHT"),
        ({"user": "anna,"}, "is no NAME or NAME:WEIGHT"),
    ],
)
def test_what_cannot_be_wanted_is_refused(options: dict[str, float | str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Wanted(**options)


def test_the_newest_adapter_of_a_run_is_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no user adapter .* train with a people block"):
        adapter_of(tmp_path)
    folders = [tmp_path / "run" / "export" / name for name in ("users", "users-2", "users-10")]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "user_adapter_config.json").write_text("{}")
    assert adapter_of(tmp_path / "run") == adapter_of(tmp_path / "run" / "export") == folders[2]
    assert adapter_of(folders[0]) == folders[0]


def test_whoever_is_unknown_leaves_the_pipeline_as_it_was(tmp_path: Path) -> None:
    pipe, folder = kept_pipeline("sd"), saved("sd", tmp_path)
    base = latents(pipe)
    with pytest.raises(UsersError, match="nobody is stored as"):
        attach_wanted(pipe, folder, Wanted(user="dora"))
    with pytest.raises(ValueError, match="knows people and no directions"):
        attach_wanted(pipe, folder, Wanted(direction="hps=1"))
    attached = attach_wanted(pipe, folder, Wanted(user="anna", scale=0.0))
    try:
        assert (latents(pipe) == base).all()
    finally:
        attached.detach()


def pictures(folder: Path, *arguments: str) -> np.ndarray:
    command = ["generate", *arguments, "--prompt", "a red circle", "--seeds", "1", "--steps", "1"]
    result = CliRunner().invoke(app, [*command, "--output", str(folder)])
    assert result.exit_code == 0, result.stderr
    return np.asarray(Image.open(folder / "0000-0.png"))


@pytest.mark.slow
def test_the_command_makes_pictures_for_somebody(tmp_path: Path) -> None:
    model, people = tiny_folder("sd", tmp_path / "models"), str(saved("sd", tmp_path / "people"))
    base = pictures(tmp_path / "base", model)
    anna = pictures(tmp_path / "anna", model, "--users", people, "--user", "anna")
    assert (anna != base).any()
    both = pictures(tmp_path / "both", model, "--users", people, "--user", "anna:1,ben:0")
    assert (anna == both).all()
    half = pictures(tmp_path / "half", model, "--users", people, "--user", "anna", "--user-scale", "0")
    assert (half == base).all()
    result = CliRunner().invoke(app, ["generate", model, "--prompt", "x", "--user", "anna"])
    assert result.exit_code == 2
    assert "holds no user adapter" in result.stderr
    nowhere = ["generate", str(tmp_path / "nowhere"), "--prompt", "x", "--users", people, "--user", "dora"]
    assert "nobody is stored as" in CliRunner().invoke(app, nowhere).stderr  # before a model is opened


@pytest.mark.slow
def test_a_moved_export_knows_its_model_and_directions(tmp_path: Path) -> None:
    from diffalign.policy import load_policy
    from diffalign.policy.export import export_policy

    model = tiny_folder("sd", tmp_path / "models")
    export = export_policy(load_policy(model, AdapterConfig(rank=2)), tmp_path / "moved")
    adapter = trained(tiny_pipeline("sd").unet, encoder="direction", scorers=("hps", "pick"), hidden=8)
    object.__setattr__(adapter, "branch", adapter.branch.__class__(base=model))
    save_adapter(adapter, export / "users")
    one, other = (
        pictures(tmp_path / str(i), str(export), "--direction", text)
        for i, text in enumerate(("hps=1", "pick=1"))
    )
    assert (one != other).any()
    result = CliRunner().invoke(app, ["generate", str(export), "--prompt", "x", "--direction", "size=1"])
    assert result.exit_code == 2
    assert "does not name one of hps, pick" in result.stderr
    result = CliRunner().invoke(app, ["generate", str(export), "--prompt", "x", "--lora", str(export)])
    assert "has a LoRA of its own" in result.stderr
