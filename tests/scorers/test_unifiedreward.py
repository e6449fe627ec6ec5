"""UnifiedReward: questions, parsing with a status, both orders, soft answers, the local model."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

import scorers
from scorers.qwen_chat import template
from scorers.unifiedreward import UnifiedReward
from scorers.unifiedreward_parse import parse_pair, parse_pair_axes, parse_point, parse_point_axes
from tests.scorers.conftest import GOLDEN
from tests.scorers.tiny_qwen import golden_state, write_folder


class Script:
    """A chat model that says what it is told, by the brightness of the first picture shown."""

    def __init__(self, say: dict[float, str], logits: dict[str, float] | None = None) -> None:
        self.say, self.logits, self.asked = say, logits or {}, []

    def replies(
        self, pictures: Sequence[Tensor], questions: Sequence[str], *, max_new_tokens: int
    ) -> list[str]:
        self.asked += questions
        return [self.say[round(float(x.mean()), 1)] for x in pictures[0]]

    def next_logits(
        self,
        pictures: Sequence[Tensor],
        questions: Sequence[str],
        answers: Sequence[str],
        words: Sequence[str],
    ) -> Tensor:
        self.begun = list(answers)
        return torch.tensor([[self.logits[w] for w in words]] * len(questions))


def grey(*levels: float) -> Tensor:
    return torch.tensor(levels)[:, None, None, None].expand(-1, 3, 8, 8)


def test_questions_are_the_published_ones() -> None:
    wanted = {
        "pair": (822, "0fd2f5c43a065165"),
        "point": (810, "f56f919ce3bc6aab"),
        "point_axes": (733, "75d52d3ae771f89b"),
        "pair_axes": (1133, "828e9ab2f81c3b6d"),
    }
    for name, (length, digest) in wanted.items():
        text = template(f"unifiedreward_{name}")
        assert (len(text), hashlib.sha256(text.encode()).hexdigest()[:16]) == (length, digest)
        assert text.count("{prompt}") == 1


def test_marks_of_the_published_code_and_no_silent_zero() -> None:
    cases = json.loads((GOLDEN / "unifiedreward_point_parse.json").read_text())
    for case in cases:
        found = parse_point(case["text"])
        if case["score"]:
            assert (found.values, found.status) == ((case["score"],), "ok")
        else:
            assert math.isnan(found.values[0])
            assert found.status in ("missing", "out_of_range")
    assert parse_point("Final Score: 6").status == "out_of_range"
    assert parse_point("Final Score: 5.5").status == "out_of_range"
    assert parse_point("Final Score: 45").status == "out_of_range"
    assert parse_point("4").status == "missing"


def test_other_replies() -> None:
    axes = "Alignment Score (1-5): 2.5\nCoherence Score (1-5): 3\nStyle Score (1-5): 4.25"
    assert parse_point_axes(axes)[:2] == ((2.5, 3, 4.25), "ok")
    assert parse_point_axes(axes.replace("4.25", "9")).status == "out_of_range"
    assert parse_point_axes(axes.replace("Style", "Taste")).status == "missing"
    assert parse_pair("So Image 1 is better.")[:2] == ((1.0,), "ok")
    assert parse_pair("Image 2 is better.")[:2] == ((0.0,), "ok")
    assert parse_pair("Both images are equally good.")[:2] == ((0.5,), "ok")
    assert parse_pair("Image 1 is better. No, Image 2 is better.").status == "ambiguous"
    assert parse_pair("the left one").status == "missing"
    shares = "".join(
        f"{a} Score:\n Image 1: 0.4\n Image 2: 0.6\n\n" for a in ("Alignment", "Coherence", "Style")
    )
    assert parse_pair_axes(shares)[:2] == ((0.4, 0.4, 0.4), "ok")
    assert parse_pair_axes(shares.replace("0.6", "0.9")).status == "out_of_range"
    assert parse_pair_axes("").status == "missing"


def test_scores_and_status_per_picture() -> None:
    chat = Script({0.1: "Final Score: 2", 0.5: "I cannot say", 0.9: "cat (animal): 1\nFinal Score: 4.5"})
    scorer = UnifiedReward(chat)
    found = scorer(grey(0.1, 0.5, 0.9), "a {nice} cat")
    assert found.status == ("ok", "missing", "ok")
    torch.testing.assert_close(found.score, torch.tensor([2, math.nan, 4.5]), equal_nan=True)
    assert chat.asked[0].endswith("Text Caption: [a {nice} cat]")
    with pytest.raises(ValueError, match="prompt"):
        scorer(grey(0.1))


def test_axes_are_dimensions() -> None:
    reply = "Alignment Score (1-5): 1\nCoherence Score (1-5): 2\nStyle Score (1-5): 3"
    found = UnifiedReward(Script({0.1: reply, 0.5: ""}), "axes")(grey(0.1, 0.5), "a cat")
    assert found.status == ("ok", "missing")
    assert {k: float(v[0]) for k, v in found.dims.items()} == {
        "overall": 2,
        "alignment": 1,
        "coherence": 2,
        "style": 3,
    }
    assert all(v[1].isnan() for v in found.dims.values())


def test_comparison_in_both_orders() -> None:
    one, two, tie = "Image 1 is better.", "Image 2 is better.", "Both images are equally good."
    # the first shown decides what is said: 0.1 wins against 0.9; 0.3 always says "1"; 0.5 is lost for words
    chat = Script({0.1: one, 0.9: two, 0.3: one, 0.2: one, 0.5: "?", 0.4: tie, 0.6: one})
    found = UnifiedReward(chat).compare(grey(0.1, 0.3, 0.5, 0.4), grey(0.9, 0.2, 0.1, 0.6), "a cat")
    assert found.status == ("ok", "ok", "missing", "ok")
    torch.testing.assert_close(found.prob, torch.tensor([1, 0.5, math.nan, 0.25]), equal_nan=True)
    assert found.tie_prob is not None
    assert found.order_agreement is not None
    torch.testing.assert_close(found.tie_prob, torch.tensor([0, 0, math.nan, 0.5]), equal_nan=True)
    torch.testing.assert_close(found.order_agreement, torch.tensor([1, 0, math.nan, 0]), equal_nan=True)
    with pytest.raises(ValueError, match="1 pictures cannot be compared with 2"):
        UnifiedReward(chat).compare(grey(0.1), grey(0.1, 0.3), "a cat")


def test_soft_answers_use_the_chances_of_the_deciding_word() -> None:
    logits = {"1": 0.0, "2": 0.0, "3": 1.0, "4": 2.0, "5": 0.0}
    chat = Script({0.1: "dog: 1\nFinal Score: 4.5", 0.5: "?"}, logits)
    found = UnifiedReward(chat, soft=True)(grey(0.1, 0.5), "a cat")
    p = torch.tensor(list(logits.values())).softmax(0)
    torch.testing.assert_close(found.score[0], (p * torch.arange(1.0, 6)).sum())
    assert found.score[1].isnan()
    assert chat.begun == ["dog: 1\nFinal Score: ", ""]
    chat = Script({0.1: "So Image 1 is better.", 0.9: "Image 2 is better."}, {"1": 2.0, "2": 1.0})
    pair = UnifiedReward(chat, soft=True).compare(grey(0.1), grey(0.9), "a cat")
    assert chat.begun == ["Image "]
    torch.testing.assert_close(
        pair.prob, torch.tensor([0.5])
    )  # 1 is likelier in both orders: places, not pictures
    assert pair.order_agreement is not None
    assert pair.order_agreement.tolist() == [0]
    with pytest.raises(ValueError, match="digit by digit"):
        UnifiedReward(chat, "axes", soft=True)


def test_local_model(tmp_path: Path) -> None:
    state = {k: v for k, v in golden_state().items() if not k.startswith("rm_head")}
    scorer = scorers.load("unifiedreward", weights=write_folder(tmp_path, state))
    assert isinstance(scorer, UnifiedReward)
    scorer.max_new_tokens = 2
    found = scorer(torch.rand(2, 3, 56, 56), "a cat")
    assert found.status == ("missing", "missing")  # random weights talk nonsense
    assert found.score.isnan().all()
    with pytest.raises(ValueError, match="special token"):
        scorer(torch.rand(1, 3, 56, 56), "a <|im_end|>")
    with pytest.raises(FileNotFoundError, match="needs weights"):
        scorers.load("unifiedreward")
    assert not scorer.differentiable
