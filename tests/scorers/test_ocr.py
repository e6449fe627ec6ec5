"""Spelling rewards against Flow-GRPO's own, with a stub for the engine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import scorers
from scorers.ocr import Ocr, edit_distance, quoted, spelling
from scorers.registry import RegistryError
from tests.scorers.conftest import GOLDEN


class Stub:
    """Reads a word off the brightness of a picture."""

    words = ("dark", "light")

    def read(self, picture: Any) -> Sequence[tuple[str, float]]:
        assert picture.dtype == "uint8"
        assert picture.shape[2] == 3
        return [(self.words[int(picture.mean() > 127)], 0.9)]


@pytest.mark.parametrize("case", json.loads((GOLDEN / "ocr_reward.json").read_text()))
def test_golden_rewards(case: dict[str, Any]) -> None:
    assert spelling(case["lines"], quoted(case["prompt"])) == pytest.approx(case["reward"], abs=1e-9)


def test_edit_distance_by_hand() -> None:
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance("", "abc") == edit_distance("abc", "") == 3
    assert edit_distance("same", "same") == 0


def test_scores_pictures_for_straight_and_curly_quotes() -> None:
    scorer = Ocr(Stub())
    pictures = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])
    found = scorer(pictures, ['a sign "DARK"', "a sign \u201clight\u201d"])
    assert found.score.tolist() == [1.0, 1.0]
    found = scorer.score_tensor(pictures, ['"lark"', '"slight"'])
    assert found.tolist() == pytest.approx([3 / 4, 5 / 6])  # one letter wrong, one missing


def test_targets_may_be_given_apart() -> None:
    scorer = Ocr(Stub(), {"a dark sign": "dark"})
    assert scorer.score_tensor(torch.zeros(1, 3, 8, 8), ["a dark sign"]).item() == 1


def test_prompts_without_text_are_refused() -> None:
    for prompt in ("a sign", 'a sign "', 'a sign ""', 'a sign "  "'):
        with pytest.raises(ValueError, match="asks for no text"):
            Ocr(Stub()).score_tensor(torch.zeros(1, 3, 8, 8), [prompt])
    with pytest.raises(ValueError, match="empty"):
        spelling([("a", 1.0)], " ")


def test_engine_comes_from_a_json_file(tmp_path: Path) -> None:
    file = tmp_path / "options.json"
    file.write_text(json.dumps({"engine": "tests.scorers.test_ocr:Stub", "targets": {"x": "dark"}}))
    for weights in (file, tmp_path):
        scorer = scorers.load("ocr", weights)
        assert scorer.score_tensor(torch.zeros(1, 3, 8, 8), ["x"]).item() == 1
    with pytest.raises(FileNotFoundError, match="SCORERS_WEIGHTS"):
        scorers.load("ocr")
    file.write_text('{"engin": "x"}')
    with pytest.raises(ValueError, match="lacks engine and has unknown engin"):
        scorers.load("ocr", file)
    file.write_text("[]")
    with pytest.raises(ValueError, match="not a json object"):
        scorers.load("ocr", file)
    file.write_text("{")
    with pytest.raises(ValueError, match="is not json"):
        scorers.load("ocr", file)
    file.write_text('{"engine": "paddle"}')
    with pytest.raises(RegistryError, match="no OCR engine is called 'paddle'"):
        scorers.load("ocr", file)
