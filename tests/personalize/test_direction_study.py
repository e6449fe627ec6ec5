"""The study of directions: its labels, and what its page says of made-up scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from diffalign.personalize.direction_page import against, page, write_page
from diffalign.personalize.direction_study import (
    BASE,
    DIRECTED,
    NO_DIRECTION,
    OBEDIENCE,
    Scores,
    StudyOptions,
    labelled_by,
    recipes,
)
from diffalign.train.align import load_recipe
from tests.train.people_runs import scored

A, B = "shapes-large", "shapes-dark"


def scores(options: StudyOptions, sign: float = 1.0) -> Scores:
    """The base has a spread of about 1; directions gain along their path."""
    base = np.random.default_rng(0).normal(size=(6, 2))
    right = np.ones((6, 2))
    found = {BASE: {A: base, B: base, OBEDIENCE: right}}
    for i, name in enumerate(options.path):
        found[name] = {A: base + sign * (2 - 0.5 * i), B: base + sign * 0.5 * i, OBEDIENCE: right}
    found[NO_DIRECTION] = {A: base + 1, B: base + 1, OBEDIENCE: right}
    for axis in (A, B):
        found[axis] = {A: base + 3 * (axis == A), B: base + 3 * (axis == B), OBEDIENCE: 0.5 * right}
    return found


def test_one_scorer_labels_the_pairs_that_it_can_tell_apart() -> None:
    found = labelled_by(scored(3), "large")
    assert [r.values for r in found] == [(0.0, 1.0)] * 3
    tie = scored(1)[0]
    object.__setattr__(tie, "judged", {"large": (1.0, 1.0)})
    assert labelled_by([tie], "large") == []


def test_recipes_differ_in_people_alone(tmp_path: Path) -> None:
    found = recipes(StudyOptions(), tmp_path)
    assert list(found) == [DIRECTED, A, B]
    config = load_recipe(found[DIRECTED])
    assert config.people is not None
    assert config.people.drawn.among == (f"{A}=1", f"{A}=1,{B}=1", f"{B}=1")
    assert load_recipe(found[A]).people is None
    assert {k: v for k, v in found[DIRECTED].items() if k != "people"} == found[A]


def test_the_page_says_what_was_measured(tmp_path: Path) -> None:
    options = StudyOptions()
    text = page(options, scores(options))
    assert "gains of shapes-large fall at every step (win rates fall at" in text
    assert "gains of shapes-dark rise at every step" in text
    assert "| 3:1 | no |" in text
    assert "| 1:1 | yes |" in text
    assert "| LoRA of shapes-dark alone |" in text
    assert "50 %" in text
    assert "fall at 0 of 4 steps" in page(options, scores(options, -1.0))
    lost = against(scores(options), A, "1:0")
    assert lost.value < 0
    assert lost.value == pytest.approx(lost.low)
    write_page(options, scores(options), tmp_path)
    figures = json.loads((tmp_path / "directions.json").read_text())
    assert figures["gains"][A]["1:0"]["gain"] > figures["gains"][A]["0:1"]["gain"]
    assert (tmp_path / "directions.png").stat().st_size > 5000
