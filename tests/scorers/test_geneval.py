"""GenEval's logic against its own verdicts, and the scorer on a stub detector."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import scorers
from scorers.detect import Detection, ZeroShotColours, cut_out, own_colours
from scorers.geneval import GenEval, by_task, judge, relations, sure
from scorers.tasks import Include, Task
from tests.scorers.conftest import GOLDEN

DATA = json.loads((GOLDEN / "geneval.json").read_text())
EMPTY = torch.zeros(3, 100, 100)


def box(label: str, values: Sequence[float], colour: str | None = None) -> Detection:
    left, top, right, bottom, confidence = values
    return Detection(label=label, box=(left, top, right, bottom), confidence=confidence, colour=colour)


def detections() -> list[Detection]:
    return [
        box(label, values, DATA["colors_by_conf"].get(str(values[4])))
        for label, rows in DATA["detections"].items()
        for values in rows
    ]


@pytest.mark.parametrize("case", DATA["relations"])
def test_golden_relations(case: dict[str, Any]) -> None:
    assert sorted(relations(case["a"], case["b"], DATA["position_threshold"])) == sorted(case["relations"])


@pytest.mark.parametrize("case", DATA["cases"])
def test_golden_verdicts(case: dict[str, Any]) -> None:
    verdict = judge(EMPTY, sure(detections(), 0.3), Task.of(case["metadata"]))
    assert verdict.correct == case["correct"]
    assert "\n".join(verdict.reasons) == case["reason"]


def test_relation_is_where_the_first_lies() -> None:
    left, right = (0, 40, 20, 60), (60, 40, 80, 60)
    assert relations(left, right) == ["left of"]
    assert relations(right, left) == ["right of"]
    assert relations((40, 0, 60, 20), (40, 60, 60, 80)) == ["above"]
    assert relations(left, left) == []


def test_the_surest_sixteen_count_and_sure_is_above() -> None:
    many = [box("dog", (0, 0, 9, 9, 0.3 + 0.01 * i)) for i in range(20)]
    kept = sure(many, 0.3)["dog"]
    assert [d.confidence for d in kept] == sorted((d.confidence for d in many), reverse=True)[:16]
    assert sure(many[:1], 0.3) == {}


class Boxes:
    """Finds a dog in white pictures, two in black ones; the second is not very sure."""

    labels = ("dog", "cat")

    @classmethod
    def load(cls, weights: Path | None, *, device: str | torch.device, dtype: torch.dtype) -> Boxes:
        return cls()

    def detect(self, x01: Tensor) -> list[list[Detection]]:
        found = [box("dog", (0, 0, 9, 9, 0.95)), box("dog", (5, 5, 9, 9, 0.5))]
        return [found[: 1 + int(picture.mean() < 0.5)] for picture in x01]


def test_scores_pictures_with_any_detector(tmp_path: Path) -> None:
    lines = [
        {"tag": "counting", "include": [{"class": "dog", "count": 2}], "prompt": "two dogs"},
        {
            "tag": "two_object",
            "include": [{"class": "dog", "count": 2}, {"class": "cat", "count": 1}],
            "prompt": "two dogs and a cat",
        },
        {
            "tag": "single_object",
            "include": [{"class": "dog", "count": 1}],
            "exclude": [{"class": "dog", "count": 2}],
            "prompt": "a dog",
        },
    ]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = {"detector": "tests.scorers.test_geneval:Boxes", "metadata": "metadata.jsonl"}
    (tmp_path / "options.json").write_text(json.dumps(options))
    scorer = scorers.load("geneval", tmp_path)
    pictures = torch.stack([torch.ones(3, 8, 8), torch.zeros(3, 8, 8)])
    assert scorer(pictures, "a dog").score.tolist() == [1.0, 0.0]
    # For counting only the very sure ones count, for others both dogs do.
    assert scorer(pictures, "two dogs").score.tolist() == [0.0, 0.0]
    found = scorer(pictures, "two dogs and a cat")
    assert found.dims["met"].tolist() == [0.0, 0.5]
    assert found.dims["correct"].tolist() == found.score.tolist() == [0.0, 0.0]
    single = [scorer.score_tensor(p[None], ["a dog"]).item() for p in pictures]
    assert single == scorer.score_tensor(pictures, ["a dog"] * 2).tolist()
    with pytest.raises(ValueError, match="does not say what prompt 'a fish'"):
        scorer(pictures, "a fish")


def test_what_the_detector_cannot_find_is_an_error() -> None:
    scorer = GenEval(Boxes(), lambda prompt: Task(tag="single_object", include=(Include(label="fish"),)))
    with pytest.raises(ValueError, match="asks for fish, which the detector does not know"):
        scorer.score_tensor(torch.ones(1, 3, 8, 8), ["a fish"])
    scorer = GenEval(Boxes(), lambda prompt: Task(tag="c", include=(Include(label="dog", colour="red"),)))
    with pytest.raises(ValueError, match="names no colours"):
        scorer.score_tensor(torch.ones(1, 3, 8, 8), ["a red dog"])


def test_colours_by_a_two_tower_scorer() -> None:
    """Towers whose features are mean colours: the object counts, not what lies around it."""
    red, blue = torch.tensor([1.0, 0, 0]), torch.tensor([0, 0, 1.0])

    def images(x01: Tensor) -> Tensor:
        return torch.nn.functional.normalize(x01.mean((2, 3)), dim=1)

    def texts(given: Sequence[str]) -> Tensor:
        assert "a photo of a red dog" in given
        assert "a photo of a blue-colored dog" in given
        return torch.stack([red if "red" in text else blue for text in given])

    picture = blue[:, None, None].repeat(1, 20, 20)
    picture[:, 4:12, 4:12] = red[:, None, None]
    mask = torch.zeros(20, 20, dtype=torch.bool)
    mask[4:12, 4:12] = True
    detection = Detection(label="dog", box=(2.0, 2.0, 14.0, 14.0), confidence=1.0, mask=mask)
    assert ZeroShotColours(images, texts, ["blue", "red"])(picture, [detection]) == ["red"]
    cut = cut_out(picture, detection)
    assert cut.shape == (3, 12, 12)
    assert cut[:, 0, 0].tolist() == pytest.approx([0.6] * 3)
    assert own_colours(picture, [box("dog", (0, 0, 1, 1, 1), "red")]) == ["red"]


def test_colours_and_labels_by_options(folder: Path, tmp_path: Path) -> None:
    """``folder`` holds a tiny PickScore, whose towers tell colours apart, rightly or not."""
    task = {"tag": "colors", "include": [{"class": "hound", "count": 1, "color": "red"}], "prompt": "red"}
    (tmp_path / "m.jsonl").write_text(json.dumps(task) + "\n")
    options = {
        "detector": "tests.scorers.test_geneval:Boxes",
        "metadata": "m.jsonl",
        "rename": {"hound": "dog"},
        "colours": {"scorer": "pickscore", "weights": folder.name},
    }
    file = tmp_path / "options.json"
    file.write_text(json.dumps(options))
    (verdict,) = scorers.load("geneval", file).verdicts(torch.ones(1, 3, 32, 32), ["red"])
    assert verdict.correct or "expected red hound>=1, found 0 red; and 1 " in verdict.reasons[0]
    file.write_text(json.dumps({**options, "rename": {"hound": "horse"}}))
    with pytest.raises(ValueError, match="rename asks for horse"):
        scorers.load("geneval", file)
    file.write_text(json.dumps({**options, "colours": {"scorer": "jpeg"}}))
    with pytest.raises(ValueError, match="no two towers"):
        scorers.load("geneval", file)
    file.write_text(json.dumps({**options, "colours": "pickscore"}))
    with pytest.raises(ValueError, match="colours is 'pickscore'; it must be options"):
        scorers.load("geneval", file)
    file.write_text(json.dumps({**options, "weights": "nowhere"}))
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        scorers.load("geneval", file)


def test_task_scores_weigh_tags_alike() -> None:
    found = by_task(["a", "a", "a", "b"], [True, True, False, False])
    assert found == pytest.approx({"a": 2 / 3, "b": 0.0, "overall": 1 / 3})
    with pytest.raises(ValueError, match="one at least"):
        by_task([], [])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[]", "no task of GenEval"),
        ("{", "no task of GenEval"),
        ('{"tag": "x"}', "lacks include"),
        ('{"tag": "x", "include": [{"class": "dog"}]}', "lacks count"),
        (
            '{"tag": "x", "include": [{"class": "dog", "count": 1, "position": ["near", 0]}]}',
            "must be one of left of",
        ),
    ],
)
def test_bad_metadata_names_the_line(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text(line + "\n")
    options = {"detector": "tests.scorers.test_geneval:Boxes", "metadata": "m.jsonl"}
    (tmp_path / "options.json").write_text(json.dumps(options))
    with pytest.raises(ValueError, match=message):
        scorers.load("geneval", tmp_path)
