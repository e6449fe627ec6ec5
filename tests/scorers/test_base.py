"""What ScorerBase adds to a score: dimensions, details, cross products, comparisons, order, refusals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from scorers.base import ScorerBase
from scorers.pickscore import PickScore
from scorers.protocol import Details, ScoreOutput

PROMPTS = ["a cat", "a red dog", "trees"]


class Colours(ScorerBase):
    """Scores mean red and green; says how sure it is and what it could not see."""

    name = "colours"
    dims = ("red", "green")
    licence = citation = "none"
    temperature = 0.5

    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        return x01[:, 0].mean((1, 2)) * torch.tensor([float(len(p)) for p in prompts])

    def score_dims(self, x01: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        return {"red": self.score_tensor(x01, prompts), "green": x01[:, 1].mean((1, 2))}


class Doubtful(Colours):
    def details(self, x01: Tensor, prompts: Sequence[str]) -> Details:
        score = self.score_tensor(x01, prompts)
        status = ["ok" if s > 0 else "dark" for s in score]
        return Details(score=score, raw=-score, std=score * 2, status=status)


def flat(*reds: float, size: int = 4) -> list[Tensor]:
    """Pictures of one colour, of growing sizes, so that they go through in several chunks."""
    return [
        torch.tensor([r, 0.5, 0.0])[:, None, None].expand(3, size + i % 2, size) for i, r in enumerate(reds)
    ]


def test_dimensions_come_back_in_the_order_of_the_pictures() -> None:
    out = Colours()(flat(0.1, 0.9, 0.4), "ab", chunk=1)
    torch.testing.assert_close(out.score, torch.tensor([0.2, 1.8, 0.8]))
    assert list(out.dims) == ["red", "green"]
    torch.testing.assert_close(out.dims["red"], out.score)
    torch.testing.assert_close(out.dims["green"], torch.full((3,), 0.5))
    assert out.raw is out.std is out.status is None
    assert Colours().score_dims(torch.zeros(1, 3, 4, 4), ["a"]).keys() == {"red", "green"}


def test_details_come_back_in_the_order_of_the_pictures() -> None:
    out = Doubtful()(flat(0.5, 0.25, 0.0), "ab")
    assert out.raw is not None
    assert out.std is not None
    torch.testing.assert_close(out.raw, torch.tensor([-1.0, -0.5, 0.0]))
    torch.testing.assert_close(out.std, torch.tensor([2.0, 1.0, 0.0]))
    assert out.status == ("ok", "ok", "dark")


def test_cross_product() -> None:
    out = Colours()(flat(0.1, 0.9, 0.4), ["a", "ab"], cross=True)
    torch.testing.assert_close(out.score, torch.tensor([[0.1, 0.2], [0.9, 1.8], [0.4, 0.8]]))
    for use in (out.rank, out.ties, lambda: out.prob([0] * 3)):
        with pytest.raises(ValueError, match="take one column"):
            use()
    with pytest.raises(ValueError, match="give at least one prompt"):
        Colours()(flat(0.1), [], cross=True)


def test_cross_product_of_two_towers_is_that_of_single_scores(scorer: PickScore) -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (32 + i, 40, 3), dtype=np.uint8) for i in (0, 8, 0)]
    crossed = scorer(pictures, PROMPTS[:2], cross=True).score
    single = torch.stack([scorer(pictures, p).score for p in PROMPTS[:2]], 1)
    assert crossed.shape == (3, 2)
    torch.testing.assert_close(crossed, single, rtol=0, atol=1e-4)


def test_groups_have_one_prompt_each() -> None:
    scorer, (a, b, c) = Colours(), flat(0.1, 0.9, 0.4)
    out = scorer([[a, b], [c]], ["a", "ab"])
    assert out.groups == (0, 0, 1)
    torch.testing.assert_close(out.score, torch.tensor([0.1, 0.9, 0.8]))
    assert out.rank().tolist() == [2, 1, 1]
    torch.testing.assert_close(out.prob(), torch.tensor([-0.8, 0.8, torch.inf]).sigmoid())
    torch.testing.assert_close(out.prob([0, 0, 0]).sum(), torch.tensor(1.0))
    assert scorer([[a], [b, c]], "ab").groups == (0, 1, 1)
    with pytest.raises(ValueError, match="2 groups but 3 prompts"):
        scorer([[a, b], [c]], PROMPTS)
    for wrong in ([[a], []], [[a], b]):
        with pytest.raises(ValueError, match="group 1 is not a list of one picture or more"):
            scorer(wrong, "ab")


def test_comparison() -> None:
    scorer = Colours()
    out = scorer.compare(flat(0.9, 0.4), flat(0.4, 0.4), "a")
    torch.testing.assert_close(out.logit, torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(out.prob, torch.tensor([1.0, 0.0]).sigmoid())
    assert out.tie_prob is None
    scorer.tie_threshold = 0.1
    tie = scorer.compare(flat(0.9, 0.4), flat(0.4, 0.4), "a").tie_prob
    assert tie is not None
    assert tie.tolist() == [0, 1]
    scorer.higher_better = False
    torch.testing.assert_close(scorer.compare(flat(0.9), flat(0.4), "a").logit, torch.tensor([-1.0]))
    with pytest.raises(ValueError, match="2 pictures cannot be compared with 1"):
        scorer.compare(flat(0.9, 0.4), flat(0.4), "a")


def test_rank_and_ties() -> None:
    out = ScoreOutput(score=torch.tensor([1.0, 5.0, 2.0, 5.0]))
    assert out.rank().tolist() == [4, 1, 3, 1]
    assert out.rank([0, 1, 0, 1]).tolist() == [2, 1, 1, 1]
    assert ScoreOutput(score=out.score, higher_better=False).rank().tolist() == [1, 3, 2, 3]
    assert out.ties().tolist() == [[1, 3]]
    assert out.ties(1.0).tolist() == [[0, 2], [1, 3]]
    with pytest.raises(ValueError, match="must not be negative"):
        out.ties(-1)
    with pytest.raises(ValueError, match="3 group numbers for 4 scores"):
        out.rank([0, 1, 2])


def test_bad_pictures_and_prompts_are_refused_by_name() -> None:
    scorer = Colours()
    good, holed = torch.zeros(3, 4, 4), torch.full((3, 4, 4), float("nan"))
    with pytest.raises(ValueError, match=r"image 1: floats must lie in \[0, 1\], not nan"):
        scorer([good, holed], "a")
    with pytest.raises(ValueError, match=r"image 0: floats must lie in \[0, 1\].*value_range"):
        scorer([good - 1], "a")
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        scorer([good, good], ["a", "  "])
    with pytest.raises(ValueError, match="2 images but 3 prompts"):
        scorer([good, good], PROMPTS)
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        scorer([good], "a", chunk=0)
    with pytest.raises(ValueError, match="no transform of pictures"):
        scorer.with_preprocess("exact")


def test_units_of_pickscore(scorer: PickScore) -> None:
    x = torch.rand(3, 3, 32, 32)
    plain = scorer(x, PROMPTS)
    for normalise, factor in (("cos", float(scorer.scale())), ("div26", 26.0)):
        other = PickScore(scorer.clip, scorer.tokenizer, normalise=normalise)  # type: ignore[arg-type]
        torch.testing.assert_close(other.score_tensor(x, PROMPTS), plain.score / factor)
        torch.testing.assert_close(
            other.compare(x[:1], x[1:2], "a cat").prob, scorer.compare(x[:1], x[1:2], "a cat").prob
        )
    assert plain.raw is not None
    torch.testing.assert_close(plain.raw * scorer.scale(), plain.score)
    with pytest.raises(ValueError, match="normalise must be"):
        PickScore(scorer.clip, scorer.tokenizer, normalise="div100")  # type: ignore[arg-type]


def test_special_tokens_in_prompts_are_refused(scorer: PickScore) -> None:
    with pytest.raises(ValueError, match=r"prompt 1 holds the special token '<\|endoftext\|>'"):
        scorer(torch.rand(2, 3, 32, 32), ["a cat", "a cat<|endoftext|> and a dog"])


class Flickering(Colours):
    """Says nothing but a status of dark pictures, as a server that fails does."""

    def details(self, x01: Tensor, prompts: Sequence[str]) -> Details:
        score = self.score_tensor(x01, prompts)
        if not score.any():
            return Details(score=score * torch.nan, status=["failed"] * len(score))
        return Details(score=score, dims={"red": score}, raw=-score, std=2 * score)


def test_a_chunk_that_failed_does_not_take_the_others_with_it() -> None:
    found = Flickering()(flat(0.5, 0.0, 0.25), "ab", chunk=1)
    assert found.status == ("ok", "failed", "ok")
    for value, factor in ((found.score, 1), (found.dims["red"], 1), (found.raw, -1), (found.std, 2)):
        assert value is not None
        assert value[[0, 2]].tolist() == [factor, factor * 0.5]
        assert value[1].isnan()


def test_compare_says_what_went_wrong_on_either_side() -> None:
    found = Doubtful().compare(flat(0.5, 0.0, 0.5), flat(0.5, 0.5, 0.0), "ab")
    assert found.status == ("ok", "dark", "dark")
    assert Colours().compare(flat(0.5), flat(0.5), "ab").status is None
