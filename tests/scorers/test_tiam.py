"""TIAM against the published code: detection, order, binding, and the colours it measures by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import scorers
from scorers.colours import BERLIN_KAY, colour_shares, srgb_to_lab
from scorers.detect import Detection
from scorers.tiam import COLOUR_SHARE, Asked, Tiam, bound, presence, summary
from tests.scorers.conftest import GOLDEN


def golden(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def test_golden_lab_values() -> None:
    data = golden("tiam_lab")
    found = srgb_to_lab(torch.tensor(data["srgb"], dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor(data["lab"], dtype=torch.float64), atol=1e-9, rtol=0)


def test_golden_anchors_and_threshold() -> None:
    data = golden("tiam")
    assert {name: list(lab) for name, lab in BERLIN_KAY.items()} == data["lab_anchors"]
    assert data["threshold_colors"] == COLOUR_SHARE
    assert not set(data["excluded"]) & set(BERLIN_KAY)


def test_golden_detection_at_two_confidences() -> None:
    """The second of two objects is found at 0.25 only, the first at both."""
    results, orders = golden("tiam")["case1"]
    for confidence, seen in (("0.25", ["cat", "dog", "dog"]), ("0.5", ["cat"])):
        there = presence(("cat", "dog"), seen)
        assert [int(there.complete), there.kinds] == results[confidence]
        assert list(there.order) == orders[confidence]


def test_golden_binding() -> None:
    (found, bindings), (orders, counts) = golden("tiam")["case2"]
    seen = [("cat", {"red": 0.7, "blue": 0.3}), ("dog", {"blue": 0.2}), ("dog", {"blue": 0.4})]
    there = presence(("cat", "dog"), [label for label, _ in seen])
    assert [int(there.complete), there.kinds] == found["0.25"]
    assert list(there.order) == orders["0.25"]
    marks = bound([("cat", "red"), ("dog", "blue")], seen)
    assert marks == counts["0.25"]
    assert int(all(marks)) == bindings["0.25"]


def test_binding_by_hand() -> None:
    wanted = [("cat", "red"), ("dog", "blue")]
    assert bound(wanted, [("cat", {"red": 0.39})]) == [0, None]
    assert bound(wanted, [("cat", {"red": 0.1}), ("cat", {"red": 0.9}), ("dog", {})]) == [1, 0]
    assert presence(("cat", "cat"), ["cat"]).complete  # "a cat and a cat" is one kind


def test_shares_of_colours() -> None:
    picture = torch.zeros(3, 4, 4)
    picture[0, :, :2] = 1
    mask = torch.ones(4, 4, dtype=torch.bool)
    shares = colour_shares(picture, mask)
    assert shares["red"] == shares["black"] == 0.5
    mask[:, 2:] = False
    assert colour_shares(picture, mask)["red"] == 1
    assert set(colour_shares(picture, mask & False).values()) == {0.0}
    with pytest.raises(ValueError, match="the mask is"):
        colour_shares(picture, mask[:2])
    names = {"red": (1.0, 0, 0), "white": (1.0, 1, 1), "yellow": (0.95, 0.8, 0.1), "green": (0, 0.6, 0.3)}
    for name, rgb in names.items():
        plain = torch.tensor(rgb)[:, None, None].expand(3, 4, 4)
        assert colour_shares(plain, torch.ones(4, 4, dtype=torch.bool))[name] == 1


class Halves:
    """Finds a cat in the left half and, less surely, a dog in the right half of every picture."""

    labels = ("cat", "dog", "cow")
    masks = True

    @classmethod
    def load(cls, weights: Path | None, *, device: str | torch.device, dtype: torch.dtype) -> Halves:
        return cls()

    def detect(self, x01: Tensor) -> list[list[Detection]]:
        return [self._two(picture) for picture in x01]

    def _two(self, picture: Tensor) -> list[Detection]:
        left = torch.zeros(picture.shape[1:], dtype=torch.bool)
        left[:, : picture.shape[2] // 2] = True
        box = (0.0, 0.0, 1.0, 1.0)
        masks = (left, ~left) if self.masks else (None, None)
        rows = zip(("cat", "dog"), (0.9, 0.2), masks, strict=True)
        return [Detection(label=n, box=box, confidence=c, mask=m) for n, c, m in rows]


def half_red() -> Tensor:
    picture = torch.zeros(1, 3, 8, 8)
    picture[:, 0, :, :4] = 1
    picture[:, 2, :, 4:] = 0.9
    return picture


def test_scores_presence_and_colours(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a red cat", "labels": ["cat"], "colours": ["red"]},
        {"prompt": "a blue cat", "labels": ["cat"], "colours": ["blue"]},
        {"prompt": "a cat and a dog", "labels": ["cat", "dog"]},
        {"prompt": "a cow", "labels": ["cow"]},
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    options = {"detector": "tests.scorers.test_tiam:Halves", "prompts": "prompts.jsonl"}
    (tmp_path / "options.json").write_text(json.dumps(options))
    scorer = scorers.load("tiam", tmp_path)
    prompts = [r["prompt"] for r in rows]
    found = scorer(half_red().expand(4, -1, -1, -1), prompts)
    assert found.score.tolist() == [1, 0, 0, 0]
    assert found.dims["detected"].tolist() == [1, 1, 0, 0]
    assert found.dims["kinds"].tolist() == [1, 1, 1, 0]
    assert [scorer.score_tensor(half_red(), [p]).item() for p in prompts] == [1, 0, 0, 0]
    lenient = Tiam(scorer.detector, scorer.asked, confidence=0.2)
    assert lenient.score_tensor(half_red(), ["a cat and a dog"]).item() == 1
    with pytest.raises(ValueError, match="does not say what prompt 'x' names"):
        scorer(half_red(), "x")


def test_what_cannot_be_measured_is_an_error(tmp_path: Path) -> None:
    boxes = Halves()
    boxes.masks = False
    scorer = Tiam(boxes, lambda prompt: Asked(labels=("cat",), colours=("red",)))
    with pytest.raises(ValueError, match="boxes only"):
        scorer.score_tensor(half_red(), ["a red cat"])
    scorer = Tiam(Halves(), lambda prompt: Asked(labels=("cat",), colours=("orange",)))
    with pytest.raises(ValueError, match="no anchor of orange"):
        scorer.score_tensor(half_red(), ["an orange cat"])
    scorer = Tiam(Halves(), lambda prompt: Asked(labels=("bus",)))
    with pytest.raises(ValueError, match="does not know"):
        scorer.score_tensor(half_red(), ["a bus"])
    with pytest.raises(ValueError, match="give an object"):
        Asked(labels=())


def test_summary_of_prompts_and_seeds() -> None:
    found = summary(torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]]))
    assert found["tiam"] == 0.5
    assert found["per_seed"] == [1.0, 0.0, 0.5]
    assert found["per_prompt"] == pytest.approx([2 / 3, 1 / 3])
    with pytest.raises(ValueError, match=r"\(prompts, seeds\)"):
        summary(torch.zeros(3))
