"""What becomes of votes: scorers' labels, pairs by a rule, own captions, and labels turned round."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diffalign.data.records import Record
from diffalign.train.blocks import WorldConfig
from diffalign.world import votes
from diffalign.world.grammar import Prompt, parse, single_prompts
from diffalign.world.shapes import draw
from diffalign.world.votes import training_prompts, turned, world_records

SMALL = WorldConfig(images=6, per_prompt=3, temperature=0.01)


def made(monkeypatch: pytest.MonkeyPatch, cache: Path, **changes: Any) -> list[Record]:
    """Records of drawn pictures; of each prompt the second shows another prompt, and so disobeys."""
    config = replace(SMALL, **changes)
    prompts, _ = training_prompts(config)
    other = next(p for p in single_prompts("train") if p.shapes != prompts[0].shapes)

    def pictures(*arguments: object) -> Tensor:
        return torch.stack([_drawn([p, other, p]) for p in prompts])

    monkeypatch.setattr(votes, "generate_base", pictures)
    return world_records(SimpleNamespace(device="cpu"), config, cache)  # type: ignore[arg-type]


def _drawn(prompts: list[Prompt]) -> Tensor:
    return (draw(prompts, np.random.default_rng(0)) * 255).byte()


def test_scorers_put_their_labels_beside_the_votes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plain = made(monkeypatch, tmp_path)
    scored = made(monkeypatch, tmp_path, scorers=("shapes-large",))
    assert [r.values for r in scored] == [r.values for r in plain]
    for record in scored:
        one, other = record.judged["shapes-large"]
        p, q = record.judged["smpo"]
        assert p + q == pytest.approx(1)
        assert (p > q) == (one > other)
    rankings = made(monkeypatch, tmp_path, scorers=("shapes-large",), ask="rankings", list_length=3)
    assert {r.kind for r in rankings} == {"ranking"}
    assert all(len(r.judged["phi"]) == 3 for r in rankings)


def test_a_rule_makes_the_pairs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pairs = made(monkeypatch, tmp_path, scorers=("shapes-obedience",), rule="best_worst")
    prompts, _ = training_prompts(SMALL)
    assert [r.prompt for r in pairs] == [str(p) for p in prompts]
    for record in pairs:
        assert record.values == (1.0, 0.0)
        assert record.judged["shapes-obedience"] == (1.0, 0.0)
    again = made(monkeypatch, tmp_path, scorers=("shapes-obedience",), rule="relabel")
    assert len(again) == 4  # of three votes a prompt, the two whose pictures obedience tells apart
    assert {r.values for r in again} == {(1.0, 0.0)}


def test_own_captions_change_the_losers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for record in made(monkeypatch, tmp_path, captions="p"):
        if not record.undecided:
            assert record.prompt_of(record.winner) == record.prompt
            assert record.prompt_of(1 - record.winner) != record.prompt
            parse(record.prompt_of(1 - record.winner))
    described = [r for r in made(monkeypatch, tmp_path, captions="c") if not r.undecided]
    shapes = [{parse(r.prompt_of(i)).shapes for i in (0, 1)} for r in described]
    assert any(len(s) == 2 for s in shapes), "the picture of another prompt is described as what it is"


def test_a_share_of_the_labels_is_turned_and_ties_are_not() -> None:
    image = object()
    pair = Record(prompt="p", images=(image, image), kind="pair", values=(1.0, 0.0))  # type: ignore[arg-type]
    tie = replace(pair, values=(0.5, 0.5))
    like = Record(prompt="p", images=(image,), kind="labels", values=(1.0,))  # type: ignore[arg-type]
    many = turned([pair, like] * 2000 + [tie] * 50, 0.2, np.random.default_rng(0))
    turns = [r.values in ((0.0, 1.0), (0.0,)) for r in many[:4000]]
    assert 0.18 < np.mean(turns) < 0.22
    assert {r.values for r in many[4000:]} == {(0.5, 0.5)}
    assert turned([pair, like], 0.0, np.random.default_rng(0)) == [pair, like]
    assert turned([pair], 1.0, np.random.default_rng(0))[0].values == (0.0, 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "divpo"}, "name scorers"),
        ({"rule": "divpo", "scorers": ("x",), "ask": "rankings"}, "and ask votes"),
        ({"captions": "c", "ask": "likes"}, "for the sides of pairs: ask votes"),
        ({"scorers": ("x",), "ask": "likes"}, "likes are of one picture"),
        ({"flip": 0.2, "ask": "rankings"}, "no label to turn"),
        ({"flip": 1.2}, "flip is 1.2"),
    ],
)
def test_labels_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WorldConfig(**options)
