"""report.json: its schema, its safe writing, and the tables made of it."""

from __future__ import annotations

import copy
import io
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from diffalign.evaluate.report import (
    Report,
    ReportError,
    Verdict,
    build_report,
    check_report,
    load_report,
    markdown_table,
    show_report,
    source_commit,
    write_report,
)
from diffalign.evaluate.stats import compare

KEYS = "model metric held_out win_rate ci_low ci_high wins ties losses mean_gain mean_gain_sd"
KEYS += " win_rate_zero_margin p_value regression_rate"
TOP = "schema base prompts seeds_per_prompt tie_margin_sd comparisons diversity obedience versions"


def verdict(
    metric: str = "taste", *, held_out: bool = True, prompts: int = 30, model: str = "dpo"
) -> Verdict:
    base, gain = np.random.default_rng(0).normal(size=(2, prompts, 4))
    comparison = compare(base, base + gain + 0.5, sd=1.0, resamples=200, flips=200)
    return Verdict(model=model, metric=metric, held_out=held_out, comparison=comparison)


@pytest.fixture
def report() -> Report:
    return build_report(
        base="base",
        verdicts=[verdict(), verdict("clip | score [bold]", held_out=False)],
        diversity={"base": {"vendi": 2.5}, "model": {"vendi": 2.25}},
        obedience={"base": 0.97, "model": 0.955},
    )


def test_has_exactly_the_keys_of_the_schema(report: Report) -> None:
    assert list(report) == TOP.split()
    assert list(report["comparisons"][0]) == KEYS.split()
    assert (report["schema"], report["prompts"], report["seeds_per_prompt"]) == (1, 30, 4)
    assert report["tie_margin_sd"] == 0.25
    assert {"python", "torch", "numpy"} <= set(report["versions"])


@pytest.mark.skipif(shutil.which("git") is None, reason="git is missing")
def test_the_commit_of_a_checkout(tmp_path: Path) -> None:
    assert source_commit(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    (tmp_path / "file").write_text("one")
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *words], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    assert source_commit(tmp_path) == commit.strip()
    (tmp_path / "file").write_text("two")
    assert source_commit(tmp_path) == commit.strip() + "+"


def test_numbers_are_those_of_the_comparison(report: Report) -> None:
    row, found = report["comparisons"][0], verdict().comparison
    assert (row["win_rate"], row["ci_low"], row["ci_high"]) == (
        found.win_rate.value,
        found.win_rate.low,
        found.win_rate.high,
    )
    assert row["wins"] + row["ties"] + row["losses"] == 120
    assert row["mean_gain_sd"] == found.mean_gain_sd.value
    assert row["win_rate_zero_margin"] == found.win_rate_zero_margin.value
    assert (row["p_value"], row["regression_rate"]) == (found.p_value, found.regression_rate.value)


def test_goes_to_disk_and_back(report: Report, tmp_path: Path) -> None:
    path = write_report(tmp_path / "run" / "report.json", report)
    assert load_report(path) == report
    assert [p.name for p in path.parent.iterdir()] == ["report.json"]


def test_a_failed_write_keeps_the_old_report(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_report(tmp_path / "report.json", report)
    changed = copy.deepcopy(report)
    changed["base"] = "other"

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(path, changed)
    assert load_report(path) == report
    assert list(tmp_path.iterdir()) == [path]


def test_refuses_a_primary_judge_that_was_trained_on() -> None:
    with pytest.raises(ReportError, match="was trained on: put a held-out judge first"):
        build_report(base="base", verdicts=[verdict("scorer", held_out=False), verdict()])


def test_refuses_verdicts_over_different_pictures() -> None:
    with pytest.raises(ReportError, match="differ in"):
        build_report(base="base", verdicts=[verdict(), verdict("other", prompts=20)])
    with pytest.raises(ReportError, match="at least one"):
        build_report(base="base", verdicts=[])


def test_refuses_what_is_not_in_the_schema(report: Report, tmp_path: Path) -> None:
    changes: list[tuple[dict[str, Any], str]] = [
        ({"schema": 2}, "schema 2, this diffalign reads 1"),
        ({"extra": 1}, r"unknown \['extra'\]"),
        ({"comparisons": []}, "no comparisons"),
        ({"comparisons": [{"model": "dpo"}]}, r"comparisons\[0\] is not in schema 1: missing \['ci_high'"),
    ]
    for change, message in changes:
        broken: dict[str, Any] = {**report, **change}
        with pytest.raises(ReportError, match=message):
            check_report(broken)
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(ReportError, match="is not JSON"):
        load_report(tmp_path / "report.json")
    (tmp_path / "report.json").write_text("[]")
    with pytest.raises(ReportError, match="is a list, expected an object"):
        load_report(tmp_path / "report.json")


def test_refuses_numbers_that_json_does_not_have(report: Report, tmp_path: Path) -> None:
    report["obedience"]["model"] = float("nan")
    with pytest.raises(ReportError, match="JSON compliant"):
        write_report(tmp_path / "report.json", report)
    assert not list(tmp_path.iterdir())


def test_table_shows_the_numbers_together(report: Report) -> None:
    console = Console(file=io.StringIO(), width=140)
    show_report(report, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    row = report["comparisons"][0]
    for part in [
        f"{row['win_rate']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]",
        f"{row['wins']}/{row['ties']}/{row['losses']}",
        f"{row['mean_gain_sd']:+.2f}",
        "held out",
        "trained on",
        "clip | score [bold]",
        "30 prompts x 4 seeds",
        "a tie is a gain within 0.25 s.d.",
        "obedience, model: 95.5% (-1.5 points)",
        "diversity, base: vendi 2.500",
        "no evidence of quality",
    ]:
        assert part in text


def test_markdown_is_one_table(report: Report) -> None:
    lines = markdown_table(report).splitlines()
    assert [line.replace("\\|", "").count("|") for line in lines[:4]] == [9] * 4
    assert "clip \\| score [bold]" in lines[3]
    assert lines[4] == ""


def test_several_models_are_named() -> None:
    report = build_report(base="base", verdicts=[verdict(model="dpo"), verdict(model="kto")])
    assert "| dpo: taste |" in markdown_table(report)
    assert "| kto: taste |" in markdown_table(report)
    json.dumps(report)
