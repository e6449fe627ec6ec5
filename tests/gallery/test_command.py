"""``diffalign gallery``: folders of results by name alone, and mistakes in one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from diffalign.cli import app
from tests.gallery.conftest import write_results

PROMPTS = ("a red circle", "two blue stars")
runner = CliRunner()


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return write_results(tmp_path / "results", PROMPTS)


def run(*arguments: object) -> tuple[int, str]:
    result = runner.invoke(app, ["gallery", *map(str, arguments)])
    return result.exit_code, " ".join(result.output.split())


def test_runs_need_no_command_in_front(results: Path, tmp_path: Path) -> None:
    out = tmp_path / "g.html"
    assert run(results, "-o", out, "--title", "look") == (0, str(out))
    assert "<title>look</title>" in out.read_text(encoding="utf-8")
    code, text = run(results, "-o", out)
    assert code == 2
    assert "exists: give another name" in text
    assert run("write", results, "-o", out, "--overwrite", "--embed-limit", 0)[0] == 0
    assert (tmp_path / "g_images").is_dir()


def test_help_of_the_group_says_how_to_call_it() -> None:
    code, text = run("--help")
    assert code == 0
    assert "diffalign gallery RUN... -o gallery.html" in text


def test_several_runs_are_joined(results: Path, tmp_path: Path) -> None:
    other = write_results(tmp_path / "other", PROMPTS[:1], models=("late",))
    code, text = run(results, other, "-o", tmp_path / "g.html")
    assert code == 2
    assert "'late' lacks prompt 'two blue stars', which 'base' has" in text
    assert not (tmp_path / "g.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "-o", "x.html"], "nowhere/results.jsonl cannot be read"),
        (["-o", "x.html"], "Missing argument"),
        (["results", "-o", "x.html", "--prompts", "3"], "--prompts is for a training run"),
        (["results", "-o", "results"], "is a folder: name the HTML file"),
    ],
)
def test_mistakes_are_one_clear_line(
    results: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(results.parent)
    code, text = run(*arguments)
    assert code == 2
    assert message in text
    assert "Traceback" not in text
