"""Sums, minima and fronts of scorers, their normalisers, and how far scorers say the same."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

import scorers
from scorers.base import ScorerBase
from scorers.compose import Min, Pareto, Sum, pareto_fronts
from scorers.decorrelation import decorrelation
from scorers.normalise import Chain, Clip, ZScore
from scorers.protocol import Kind, Scorer


class Red(ScorerBase):
    """Mean of the red channel."""

    name = "red"
    licence = "Apache-2.0"
    citation = "none"
    needs = frozenset()
    channel = 0

    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        return x01[:, self.channel].mean((1, 2))

    @classmethod
    def load(cls, weights: Path | None, *, device: str | torch.device, dtype: torch.dtype) -> Red:
        return cls()


class Green(Red):
    """Mean of the green channel."""

    channel = 1


class Dark(Red):
    """Blue counts against a picture."""

    channel = 2
    higher_better = False


class Coarse(Red):
    """Has no gradient."""

    differentiable = False


class Pairs(Red):
    """Scores pairs only."""

    kind: Kind = "pairwise"


def plain(*colours: tuple[float, float, float]) -> Tensor:
    return torch.tensor(colours)[:, :, None, None].expand(-1, 3, 4, 4).clone()


def test_sum_weighs_normalised_parts_and_keeps_them() -> None:
    scorer = Sum(
        {"r": Red(), "dark": Dark()},
        {"r": 2.0},
        {"r": Chain(steps=(ZScore(mean=0.5, std=0.25), Clip(high=1.0)))},
    )
    x = plain((0.25, 0, 0.5), (1.0, 0, 0.0))
    found = scorer(x)
    assert found.dims["r"].tolist() == [-1.0, 1.0]  # the second is cut from 2
    assert found.dims["dark"].tolist() == [-0.5, 0.0]  # less is better, so the sign is turned
    assert found.score.tolist() == found.dims["sum"].tolist() == [-2.5, 2.0]
    assert isinstance(scorer, Scorer)
    assert "ZScore(mean=0.5, std=0.25)" in found.meta["part.r"]
    single = torch.cat([scorer.score_tensor(p[None], [""]) for p in x])
    assert torch.equal(single, found.score)


def test_minimum_and_its_gradient() -> None:
    scorer = Min({"r": Red(), "g": Green()})
    x = plain((0.2, 0.7, 0), (0.9, 0.4, 0)).requires_grad_()
    score = scorer.score_tensor(x, ["", ""])
    assert score.tolist() == pytest.approx([0.2, 0.4])
    score.sum().backward()
    assert x.grad[0, 0].min() > 0 == x.grad[0, 1].max()  # the weaker part alone is lifted
    assert (scorer.score_tensor(x.detach() + 0.1 * x.grad, ["", ""]) > score).all()


def test_needs_gradients_and_dims_follow_the_parts() -> None:
    assert Sum({"r": Red(), "g": Green()}).differentiable
    assert not Sum({"r": Red(), "c": Coarse()}).differentiable
    assert Sum({"r": Red(), "g": Green()}).dims == ("sum", "r", "g")
    assert Pareto({"r": Red(), "g": Green()}).needs == {"group"}


def test_fronts_are_those_of_a_prompt() -> None:
    assert pareto_fronts(torch.tensor([[3.0, 1, 2, 0], [1.0, 3, 2, 0]])).tolist() == [1, 1, 1, 2]
    assert pareto_fronts(torch.tensor([[1.0, 1.0], [2.0, 2.0]])).tolist() == [1, 1]
    scorer = Pareto({"r": Red(), "g": Green()})
    x = plain((0.9, 0.1, 0), (0.5, 0.05, 0), (0.1, 0.9, 0), (0.2, 0.2, 0))
    found = scorer.score_dims(x, ["a", "a", "a", "b"])
    assert found["pareto"].tolist() == [-1, -2, -1, -1]
    assert found["r"].tolist() == pytest.approx(x[:, 0, 0, 0].tolist())
    output = scorer(x, ["a", "a", "a", "b"], chunk=1)  # pieces of a group are not groups
    assert output.score.tolist() == output.dims["pareto"].tolist() == [-1, -2, -1, -1]
    order = [3, 1, 0, 2]
    again = scorer.score_tensor(x[order], [["a", "a", "a", "b"][i] for i in order])
    assert again.tolist() == found["pareto"][order].tolist()


def test_a_picture_without_a_score_is_in_no_front() -> None:
    class Blind(Green):
        def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
            score = super().score_tensor(x01, prompts)
            return score.masked_fill(score == 0, torch.nan)

    x = plain((0.9, 0.1, 0), (0.5, 0.05, 0), (0.1, 0, 0))
    found = Pareto({"r": Red(), "g": Blind()}).score_tensor(x, ["a"] * 3)
    assert found[:2].tolist() == [-1, -2]
    assert found[2].isnan()


def test_loads_from_json(tmp_path: Path) -> None:
    part = "tests.scorers.test_compose"
    recipe = {
        "r": {"scorer": f"{part}:Red", "weight": 3.0, "zscore": [0.5, 0.5]},
        "g": {"scorer": f"{part}:Green", "clip": [0.2, None]},
    }
    file = tmp_path / "sum.json"
    file.write_text(json.dumps({"parts": recipe}))
    assert scorers.load("sum", file)(plain((1.0, 0.1, 0))).score.item() == pytest.approx(3.2)
    with pytest.raises(ValueError, match="part r has unknown weight"):
        scorers.load("min", file)
    recipe["r"].pop("weight")
    file.write_text(json.dumps({"parts": recipe}))
    assert scorers.load("min", file)(plain((1.0, 0.1, 0))).score.item() == pytest.approx(0.2)
    assert scorers.load("pareto", file)(plain((1.0, 0.1, 0)), "a").score.item() == -1
    recipe["g"]["weights"] = "nowhere"
    file.write_text(json.dumps({"parts": recipe}))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        scorers.load("sum", file)
    with pytest.raises(FileNotFoundError, match="SCORERS_WEIGHTS"):
        scorers.load("sum")


def test_a_part_is_fetched_only_where_its_row_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(name: str, files: object) -> Path:
        asked.append(name)
        raise ConnectionError("no hub in tests")

    monkeypatch.setattr("scorers.hub.fetch", fetch)
    monkeypatch.delenv("SCORERS_WEIGHTS", raising=False)
    file = tmp_path / "sum.json"
    file.write_text(json.dumps({"parts": {"jpeg": {}, "pickscore": {}}}))
    with pytest.raises(FileNotFoundError, match="pickscore"):
        scorers.load("sum", file)
    assert asked == []
    file.write_text(json.dumps({"parts": {"jpeg": {}, "pickscore": {"allow_hub": True}}}))
    with pytest.raises(ConnectionError):
        scorers.load("sum", file)
    assert asked == ["pickscore"]
    file.write_text(json.dumps({"parts": {"jpeg": {}, "pickscore": {"allow_hub": "yes"}}}))
    with pytest.raises(ValueError, match="allow_hub must be true or false"):
        scorers.load("sum", file)


def test_wrong_compositions_are_refused() -> None:
    with pytest.raises(ValueError, match="two scorers or more"):
        Sum({"r": Red()})
    with pytest.raises(ValueError, match="part 'p' is pairwise"):
        Sum({"r": Red(), "p": Pairs()})
    with pytest.raises(ValueError, match="weights of x"):
        Sum({"r": Red(), "g": Green()}, {"x": 1.0})
    with pytest.raises(ValueError, match="normalisers of x"):
        Sum({"r": Red(), "g": Green()}, normalise={"x": Clip()})
    with pytest.raises(ValueError, match="low must be below high"):
        Clip(low=1, high=1)
    with pytest.raises(ValueError, match="std is 0"):
        ZScore(mean=0, std=0)


def test_zscore_of_given_scores() -> None:
    x = torch.tensor([1.0, 2.0, 3.0])
    assert ZScore.of(x) == ZScore(mean=2.0, std=1.0)
    assert ZScore.of(x)(x).tolist() == [-1, 0, 1]


def test_decorrelation_of_copies_and_of_strangers() -> None:
    a, b = torch.randn(2, 400, generator=torch.Generator().manual_seed(0)).double()
    b = b - b.mean() - (a - a.mean()) * torch.cov(torch.stack([a, b]))[0, 1] / a.var()  # at right angles
    found = decorrelation({"a": a, "b": b})
    assert found.effective == pytest.approx(2.0)
    assert found.explained.tolist() == pytest.approx([0, 0], abs=1e-9)
    copies = decorrelation({"a": a, "twice": 2 * a + 1, "b": b})
    assert copies.redundant() == ["a", "twice"]
    assert copies.pearson[0, 1].item() == pytest.approx(1.0)
    assert 1.5 < copies.effective < 2.0
    total = decorrelation({"a": a, "b": b, "sum": a + b})
    assert total.explained.tolist() == pytest.approx([1, 1, 1])
    monotone = decorrelation({"a": a, "exp": a.exp()})
    assert monotone.spearman[0, 1].item() == pytest.approx(1.0)
    assert monotone.pearson[0, 1] < 0.9
    r = 0.6
    mixed = decorrelation({"a": a / a.std(), "c": r * a / a.std() + math.sqrt(1 - r * r) * b / b.std()})
    assert mixed.explained.tolist() == pytest.approx([r * r] * 2)


def test_ranks_share_ties_and_bad_tables_are_refused() -> None:
    tied = decorrelation({"a": torch.tensor([1.0, 1, 2, 3]), "b": torch.tensor([1.0, 2, 3, 4])})
    assert tied.spearman[0, 1].item() == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    with pytest.raises(ValueError, match="two scorers or more"):
        decorrelation({"a": torch.rand(9)})
    with pytest.raises(ValueError, match="too few"):
        decorrelation({"a": torch.rand(2), "b": torch.rand(2)})
    with pytest.raises(ValueError, match="scores of b are not finite or all the same"):
        decorrelation({"a": torch.rand(9), "b": torch.ones(9)})
