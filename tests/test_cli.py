"""The command line: every command has help with an example, wrong use is one clear line and exit code 2."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from diffalign.cli import app
from diffalign.demo import demo, set_aside
from diffalign.train.align import load_recipe
from diffalign.train.config import TrainConfig
from diffalign.world.grammar import single_prompts
from diffalign.world.shapes import draw
from tests.tiny import tiny_folder

COMMANDS = ["demo", "train", "cache", "generate", "score", "evaluate", "gallery write", "export", "options"]
COMMANDS += ["doctor", "recipes list", "recipes copy", "scorers list", "scorers convert", "scorers serve"]
COMMANDS += ["bench train", "bench score", "bench attention", "gallery serve"]
COMMANDS += ["votes check", "votes summary", "votes explain", "votes to-dataset", "loop"]
COMMANDS += ["users add", "users list", "users export", "users delete", "users ask"]
runner = CliRunner()


def test_every_command_is_tried_for_help() -> None:
    groups = {"": app} | {f"{g.name} ": g.typer_instance for g in app.registered_groups}
    found = [
        prefix + (command.name or command.callback.__name__)
        for prefix, group in groups.items()
        for command in group.registered_commands
    ]
    assert sorted(found) == sorted(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str) -> None:
    result = runner.invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0
    assert "Example: diffalign" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "name a recipe"),
        (["train", "nothing.yaml"], "nothing.yaml"),
        (["train", "--dry-run"], "name a recipe"),
        (["train", "steps=2"], "name a recipe"),
        (["train", "shapes-unt-dpo"], "did you mean 'shapes-unet-dpo'?"),
        (["train", "shapes-unet-dpo", "--resume", "outputs/r"], "leave out 'shapes-unet-dpo'"),
        (["train", "--resume", "outputs/r", "--dry-run"], "give outputs/r/config.yaml"),
        (["generate", "samples/shapes/unet", "--prompt", "x", "--seeds", "0"], "'--seeds'"),
        (["bench", "train", "--steps", "0"], "'--steps'"),
        (["export", "run", "--output", "x", "--merge", "--kohya"], "export twice"),
        (["options", "objectiv"], "did you mean 'objective'?"),
        (["options", "data.wrld"], "did you mean 'data.world'?"),
        (["train", "shapes-unet-dpo", "optim.lerning_rate=1"], "did you mean 'learning_rate'?"),
        (["train", "shapes-unet-dpo", "precision=bf6"], "did you mean 'bf16'?"),
        (["train", "shapes-unet-dpo", "objective.gamma=1"], "unknown key 'objective.gamma'"),
        (["train", "shapes-unet-dpo", "policy.reference=none"], "must not be none"),
        (["train", "shapes-unet-dpo", "policy.model=nowhere"], "no diffusers pipeline at 'nowhere'"),
        (["train", "shapes-unet-dpo", "batch=6", "accumulate=4"], "cannot be cut"),
        (["train", "shapes-unet-dpo", "keep=best"], "validate.judge"),
        (["train", "--resume", "nowhere"], "no run folder"),
        (["evaluate", "nowhere"], "no run folder"),
        (["options", "optimm"], "no block 'optimm'"),
        (["recipes", "copy", "nope", "x.yaml"], "no recipe 'nope'"),
        (["demo", "--taste", "huge"], "no taste 'huge'"),
        (["score", "nowhere.png", "--prompt", "x", "--scorer", "shapes-large"], "nowhere.png"),
        (["score", "x.png", "--prompt", "x", "--scorer", "pikscore"], "did you mean 'pickscore'"),
        (["votes", "check", "nowhere.jsonl"], "nowhere.jsonl cannot be read"),
        (["loop", "--objective", "ppo"], "it must be dpo or kto"),
    ],
)
def test_wrong_use_is_one_clear_line(arguments: list[str], message: str) -> None:
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("recipe", "trained", "elements"),
    [("sd15-dpo-lora", "1,594,368", "16,384"), ("sd3-dpo-lora", "9,388,032", "262,144")],
)
@pytest.mark.slow
def test_dry_run_of_published_models(recipe: str, trained: str, elements: str) -> None:
    result = runner.invoke(app, ["train", recipe, "--dry-run"])
    assert result.exit_code == 0, result.output
    assert f"{trained} parameters trained" in result.output
    assert f"D = {elements}" in result.output
    assert "GiB a process" in result.output


def test_recipes_are_listed_and_copied(tmp_path: Path) -> None:
    listed = runner.invoke(app, ["recipes", "list"]).output
    assert "shapes-unet-dpo" in listed
    target = tmp_path / "my.yaml"
    assert runner.invoke(app, ["recipes", "copy", "shapes-unet-dpo", str(target)]).exit_code == 0
    assert "objective" in target.read_text()
    assert runner.invoke(app, ["recipes", "copy", "shapes-unet-dpo", str(target)]).exit_code == 2


def test_options_explain_every_field() -> None:
    for block in ("", "optim", "data.world", "objective.dpo"):
        lines = runner.invoke(app, ["options", block]).output.splitlines()
        assert lines
        assert all(line.strip() for line in lines)


def test_options_list_every_choice() -> None:
    named = runner.invoke(app, ["options", "objective"]).output
    assert all(f"objective.{name}\n" in named for name in ("dpo", "sft"))
    times = runner.invoke(app, ["options", "timesteps"]).output
    assert "timesteps.low" in times
    assert "one of logit_normal" in times


def test_overrides_after_resume_count(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr("diffalign.train.align.align", lambda *given, resume: asked.append((given, resume)))
    runner.invoke(app, ["train", "--resume", "out/r", "steps=2", "ema=0"], catch_exceptions=False)
    runner.invoke(app, ["train", "steps=2", "--resume", "out/r"], catch_exceptions=False)
    assert asked == [(("", "steps=2", "ema=0"), Path("out/r")), (("", "steps=2"), Path("out/r"))]


def test_score_prints_a_line_a_picture(tmp_path: Path) -> None:
    prompt = single_prompts("train")[0]
    picture = (draw([prompt], np.random.default_rng(0))[0] * 255).byte().permute(1, 2, 0).numpy()
    Image.fromarray(picture).save(tmp_path / "a.png")
    arguments = ["score", str(tmp_path / "a.png"), "--prompt", str(prompt), "--scorer", "shapes-obedience"]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert result.output.startswith("1.0000\t")


def test_generate_never_overwrites(tmp_path: Path) -> None:
    model = tiny_folder("sd", tmp_path)
    arguments = ["generate", model, "--prompt", "a red circle", "--seeds", "1", "--steps", "2"]
    arguments += ["--output", str(tmp_path / "pictures")]
    first = runner.invoke(app, arguments)
    assert first.exit_code == 0, first.output
    assert Image.open(tmp_path / "pictures" / "0000-0.png").size == (64, 64)
    assert runner.invoke(app, arguments).exit_code == 2


def test_an_older_demo_is_set_aside(tmp_path: Path) -> None:
    for i in range(2):
        (tmp_path / "demo").mkdir()
        (tmp_path / "demo" / "note").write_text(str(i))
        (tmp_path / "demo" / "config.yaml").touch()
        set_aside(tmp_path / "demo")
    assert (tmp_path / "demo.1" / "note").read_text() == "0"
    assert (tmp_path / "demo.2" / "note").read_text() == "1"


def test_a_demo_never_moves_what_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    (tmp_path / "file").touch()
    for name in ("thesis", "file"):
        result = runner.invoke(app, ["demo", "--output", str(tmp_path / name)])
        assert result.exit_code == 2
        assert "is no run folder: choose another --output" in " ".join(result.output.split())
    assert (tmp_path / "thesis" / "chapter.tex").exists()
    (tmp_path / "empty").mkdir()
    set_aside(tmp_path / "empty")
    assert (tmp_path / "empty").is_dir()


@pytest.mark.parametrize(("taste", "trained_on"), [("large", 1), ("dark", 0)])
def test_the_demo_trains_and_judges_by_its_taste(
    taste: str, trained_on: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs: list[TrainConfig] = []
    monkeypatch.setattr(
        "diffalign.train.align.align", lambda path, *changes: configs.append(load_recipe(path, changes))
    )
    assert demo(str(tmp_path / "d"), taste, Console(quiet=True)) == tmp_path / "d"
    (config,) = configs
    assert config.output == str(tmp_path / "d")
    assert config.data.world is not None
    assert config.data.world.taste == taste
    assert config.evaluate.judges == (f"shapes-{taste}",)
    assert len(config.evaluate.trained_on) == trained_on
