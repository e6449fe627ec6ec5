"""Seeds that fail, facets, standings by scores, image statistics, plan."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from diffalign.evaluate.details import Details, Seeds
from diffalign.evaluate.facets import facet_tables, facets_of
from diffalign.evaluate.image_statistics import NAMES, image_statistics
from diffalign.evaluate.planning import plan_lines
from diffalign.evaluate.prompts import EvalPrompt
from diffalign.evaluate.report import ReportError, Verdict, build_report, write_report
from diffalign.evaluate.seeds import excelling, failures, reliability, seeds_of, standing_out
from diffalign.evaluate.standings import duels_of, named_standings
from diffalign.evaluate.stats import compare
from diffalign.evaluate.table import Table


def table(scores: np.ndarray, prompts: list[EvalPrompt]) -> Table:
    models = ("base", "one", "two")[: len(scores)]
    return Table(
        models=models, prompts=tuple(prompts), seeds=scores.shape[2], scores={"right": scores}, statistics={},
        diversity={},
    )  # fmt: skip


def test_failures_of_judges_that_say_right_or_wrong():
    right = np.array([[[1.0, 0.0], [1.0, 1.0]], [[0.0, 0.0], [1.0, 1.0]]])
    failed = failures(right, 1.0)
    assert failed.tolist() == (right == 0).tolist()
    found = reliability(failed[1])
    assert (found["fail"]["value"], found["every_seed"], found["some_seeds"]) == (0.5, 0.5, 0.0)
    assert reliability(failed[0])["some_seeds"] == 0.5


def test_failures_are_counted_from_the_base_of_the_prompt():
    base = np.array([[1.0, 3.0], [11.0, 13.0]])  # means 2 and 12
    model = np.array([[0.1, -0.1], [5.0, 10.1]])
    assert failures(np.stack([base, model]), 1.0)[1].tolist() == [[False, True], [True, False]]


def test_seeds_that_stand_out_across_prompts():
    rng = np.random.default_rng(0)
    scores = 5 * rng.normal(size=(60, 1)) + rng.normal(size=(60, 6))
    assert standing_out(scores) == ([], [])
    scores[:, 2] -= 3.0
    scores[:, 4] += 1.0
    scores[:, 5] += 2.0
    assert standing_out(scores) == ([2], [5, 4])
    prompts = [EvalPrompt(prompt=str(i)) for i in range(60)]
    units = {"right": 1.0}
    assert seeds_of(table(scores[None], prompts), "right", units, "shared")["excel"] == [5, 4]
    assert seeds_of(table(scores[None], prompts), "right", units, "own")["excel"] == []  # no noise is shared


def test_seeds_that_excel_are_read_from_a_report(tmp_path: Path):
    comparison = compare(np.eye(2), 1 - np.eye(2), sd=1.0)
    verdict = Verdict(model="one", metric="s", held_out=True, comparison=comparison)
    report = build_report(base="base", verdicts=[verdict])
    file = write_report(tmp_path / "report.json", report)
    with pytest.raises(ReportError, match="--noise shared"):
        excelling(file)
    for excel in ([], [5, 4]):
        seeds = Seeds(metric="s", noise="shared", models={}, fail=[], excel=excel)
        report["details"] = Details(seeds=seeds)
        write_report(file, report)
        if excel:
            assert excelling(file) == [5, 4]
        else:
            with pytest.raises(ReportError, match="no seed excels"):
                excelling(file)


def test_equal_seeds_stand_out_nowhere():
    assert standing_out(np.ones((5, 3))) == ([], [])


TASK = '{"tag": "%s", "include": [{"class": "cow", "count": %d, "color": "red"}]}'


def test_facets_of_the_world_and_of_geneval():
    prompts = ["a red circle", "a blue star above a red ring", "a dog"]
    assert facets_of([EvalPrompt(prompt=p) for p in prompts]) == {
        "objects": {"1": [0], "2": [1]},
        "colour": {"blue": [1], "red": [0, 1]},
        "relation": {"above": [1]},
    }
    tasks = [EvalPrompt(prompt=str(n), task=TASK % ("counting", n)) for n in (2, 3)]
    assert facets_of(tasks) == {
        "tag": {"counting": [0, 1]},
        "objects": {"2": [0], "3": [1]},
        "colour": {"red": [0, 1]},
    }


def test_facet_tables_and_the_mean_of_tags():
    prompts = [EvalPrompt(prompt=str(i), task=TASK % ("one" if i < 2 else "two", 1)) for i in range(6)]
    right = np.array([[[1.0], [1.0], [0.0], [0.0], [0.0], [1.0]]])
    found = facet_tables(table(right, prompts))["right"]["base"]
    assert {k: v["value"] for k, v in found["tag"].items()} == {"one": 1.0, "two": 0.25, "overall": 0.625}
    assert found["objects"]["1"]["value"] == 0.5
    assert facet_tables(table(right + 0.1, prompts)) == {}


def test_standings_by_scores_follow_the_shift():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(3, 40, 2)) + np.array([0.0, 0.5, 1.5])[:, None, None]
    rows = named_standings(duels_of(scores, 0.25), ("base", "one", "two"))
    assert [row["model"] for row in rows] == ["base", "one", "two"]
    assert [row["rank"] for row in rows] == [3, 2, 1]
    assert rows[2]["gain"]["low"] > 0


def test_image_statistics_of_known_pictures():
    grey, red = torch.full((3, 16, 16), 0.5), torch.zeros(3, 16, 16)
    red[0] = 1.0
    board = (torch.arange(16)[:, None] + torch.arange(16)).remainder(2).float().expand(3, 16, 16)
    stripes = torch.sin(torch.arange(16) * 2 * torch.pi / 16).mul(0.5).add(0.5).expand(3, 16, 16)
    found = image_statistics(torch.stack([grey, red, board, stripes]))
    assert set(found) == set(NAMES)
    assert found["brightness"].tolist() == pytest.approx([0.5, 0.299, 0.5, 0.5])
    assert found["contrast"].tolist() == pytest.approx([0, 0, 0.5, 0.5 / 2**0.5], abs=1e-6)
    assert found["saturation"].tolist() == pytest.approx([0, 1, 0, 0], abs=1e-5)
    assert found["colourfulness"].tolist() == pytest.approx(
        [0, 0.3 * (255**2 + 127.5**2) ** 0.5, 0, 0], abs=1e-3
    )
    assert found["sharpness"][2] == pytest.approx(2**0.5)
    assert found["high_frequency"].tolist() == pytest.approx([0, 0, 1, 0], abs=1e-9)


def test_half_of_white_noise_is_beyond_the_cut():
    noise = torch.rand(4, 1, 64, 64, generator=torch.Generator().manual_seed(0)).expand(4, 3, 64, 64)
    circle = torch.pi * 0.25**2  # area of frequencies below the cut, of 1
    assert image_statistics(noise)["high_frequency"].mean() == pytest.approx(1 - circle, abs=0.02)


def test_direction_does_not_matter():
    picture = torch.rand(1, 3, 17, 24, generator=torch.Generator().manual_seed(0))
    along, across = image_statistics(picture), image_statistics(picture.mT)
    for name in NAMES:
        assert along[name].item() == pytest.approx(across[name].item())


def test_image_statistics_want_pictures():
    with pytest.raises(ValueError, match="expected"):
        image_statistics(torch.zeros(2, 1, 8, 8))


def test_plan():
    lines = plan_lines(0.55, 0.3)
    assert "783 independent pairs" in lines[0] or "782 independent pairs" in lines[0]
    assert "a prompt is worth 2.1 of them" in lines[4]
    with pytest.raises(ValueError, match="correlation"):
        plan_lines(0.55, 1.5)
