"""Denscore against the published code; an explicit direction, so that scores do not depend on the batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import scorers
from scorers.denscore import Denscore, reweigh, sentences
from scorers.pickscore import PickScore
from tests.scorers.conftest import tiny_clip, tiny_tokenizer
from tests.scorers.contract import PROMPTS, check_contract
from tests.scorers.test_losses import golden

LONG = "A cat. A red dog! Is it tall?\nTrees"


def tiny_denscore(**options: object) -> Denscore:
    return Denscore(tiny_clip(), tiny_tokenizer(), **options)  # type: ignore[arg-type]


def test_reweighing_of_the_published_code() -> None:
    data = golden("longalign_denscore")
    unit, rows = F.normalize(data["text_features_raw"], dim=1), data["batch_ids"]
    text = torch.stack([unit[rows == i].mean(0) for i in range(3)])
    direction, keep = F.normalize(text.mean(0), dim=0), float(data["weight"])
    image = data["image_features"]

    def scores(t: torch.Tensor) -> torch.Tensor:
        return (t * image).sum(1)

    torch.testing.assert_close(scores(reweigh(text, None, keep)), data["dense_plain"], rtol=1e-5, atol=1e-5)
    found = reweigh(text, direction, keep)
    torch.testing.assert_close(scores(found), data["dense_ortho_w0.3"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found @ image.T, data["dense_ortho_logit"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(reweigh(text, direction, 1.0), text)
    single = unit[:3]
    torch.testing.assert_close(scores(single), data["pick_plain"], rtol=1e-5, atol=1e-5)
    shared = F.normalize(single.mean(0), dim=0)
    torch.testing.assert_close(
        scores(reweigh(single, shared, keep)), data["pick_ortho"], rtol=1e-5, atol=1e-5
    )


def test_contract() -> None:
    scorer = tiny_denscore()
    check_contract(scorer)
    check_contract(scorer.with_direction(scorer.fit_direction([LONG, *PROMPTS])))


def test_a_long_prompt_is_the_mean_of_its_sentences() -> None:
    assert sentences(LONG) == ["A cat.", "A red dog!", "Is it tall?", "Trees"]
    assert sentences("a 3.5 m tree") == ["a 3.5 m tree"]
    scorer = tiny_denscore()
    parts = scorer.encode_dense(sentences(LONG))
    torch.testing.assert_close(scorer.encode_dense([LONG])[0], parts.mean(0))
    torch.testing.assert_close(parts.norm(dim=1), torch.ones(4))
    x = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(scorer.score_tensor(x, ["a cat"]), PickScore(
        scorer.clip, scorer.tokenizer, normalise="cos").score_tensor(x, ["a cat"]))  # fmt: skip


def test_direction_is_explicit_and_recorded(tmp_path: Path) -> None:
    scorer, x = tiny_denscore(), torch.rand(2, 3, 32, 32)
    plain = scorer(x, PROMPTS[:2])
    direction = scorer.fit_direction(PROMPTS)
    torch.testing.assert_close(direction.norm(), torch.tensor(1.0))
    scorer.with_direction(3 * direction)
    found = scorer(x, PROMPTS[:2])
    assert plain.meta["direction"] == "none"
    assert found.meta["direction"] == "keep 0.3"
    assert float((found.score - plain.score).abs().max()) > 1e-3
    scorer.save(tmp_path)
    again = scorers.load("denscore", tmp_path)
    torch.testing.assert_close(again(x, PROMPTS[:2]).score, plain.score)
    save_file({"direction": direction}, tmp_path / "direction.safetensors")
    torch.testing.assert_close(scorers.load("denscore", tmp_path)(x, PROMPTS[:2]).score, found.score)
    save_file({"o": direction}, tmp_path / "direction.safetensors")
    with pytest.raises(ValueError, match="holds o; it must hold one tensor called direction"):
        scorers.load("denscore", tmp_path)


def test_bad_options() -> None:
    with pytest.raises(ValueError, match=r"keep is a share in \[0, 1\], got 2"):
        tiny_denscore(keep=2)
    with pytest.raises(ValueError, match=r"16 numbers, not all 0; got \(3,\)"):
        tiny_denscore(direction=torch.ones(3))
    with pytest.raises(ValueError, match="not all 0"):
        tiny_denscore(direction=torch.zeros(16))
    with pytest.raises(ValueError, match="no prompts"):
        tiny_denscore().fit_direction([])
