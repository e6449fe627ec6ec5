"""The planted circle by hand, its votes, its figures; the whole study, small."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from diffalign.world.cyclic_taste import COLOURS, KINDS, PROMPTS, ballots_of, kinds_of, planted
from diffalign.world.grammar import parse
from diffalign.world.online_cycle import (
    CyclePlan,
    fit,
    logits,
    looks,
    markdown,
    preferred,
    right,
    smaller,
    study,
)
from diffalign.world.scorer_studies import CERTAIN, WorthHead
from diffalign.world.shapes import draw
from scorers.gpm import GPMHead, GPMOptions


def test_the_kinds_run_in_a_circle() -> None:
    kind = torch.tensor([0, 1, 2, -1])
    wanted = [
        [0.50, 0.95, 0.05, 0.95],
        [0.05, 0.50, 0.95, 0.95],
        [0.95, 0.05, 0.50, 0.95],
        [0.05, 0.05, 0.05, 0.50],
    ]
    found = planted(kind[:, None], kind[None, :])
    torch.testing.assert_close(found, torch.tensor(wanted))
    torch.testing.assert_close(found + found.T, torch.ones(4, 4))


def test_kinds_are_the_colours_of_the_grammar() -> None:
    found = [(k, colour) for k, kind in enumerate(KINDS) for colour in COLOURS[kind]]
    prompts = [parse(f"a large {colour} circle on a white background") for _, colour in found]
    pictures = draw(prompts * 2, np.random.default_rng(0))
    assert kinds_of(pictures).tolist() == [k for k, _ in found] * 2
    assert kinds_of(torch.zeros(1, 3, 64, 64)).tolist() == [-1]


def test_votes_follow_the_taste() -> None:
    votes = ballots_of(150, 0)
    first, second = votes.kinds.chunk(2)
    assert votes.prompts[:150] == votes.prompts[150:]
    assert set(votes.prompts) == set(PROMPTS)
    assert torch.equal(votes.label == 0.5, first == second)
    assert right(planted(first, second) - 0.5, votes.label) == pytest.approx(CERTAIN, abs=0.08)
    assert right(planted(second, first) - 0.5, votes.label) == pytest.approx(1 - CERTAIN, abs=0.08)
    few = ballots_of(8, 1)
    assert torch.equal(kinds_of(few.pictures), few.kinds)


def test_only_the_general_model_can_learn_a_circle() -> None:
    """On features that say the kind: Bradley-Terry is right on two of three kinds of pairs at most."""
    kinds, options = torch.arange(3).repeat_interleave(3), GPMOptions(planes=2, hidden=16)
    other = torch.arange(3).repeat(3)
    features = torch.nn.functional.one_hot(torch.cat([kinds, other]), 3).float()
    label = planted(kinds, other)
    torch.manual_seed(0)
    heads = {"gpm": GPMHead(3, 1, options), "worth": WorthHead(3, 1, replace(options, planes=1))}
    shares = {}
    for name, head in heads.items():
        judge: Any = SimpleNamespace(head=head, temperature=0.1)
        fit(judge, features, label, 100)
        with torch.no_grad():
            shares[name] = right(logits(judge, features), label)
    assert shares["gpm"] == 1.0
    assert shares["worth"] <= 2 / 3 + 1e-6


def test_figures_by_hand() -> None:
    even, one = torch.tensor([[0, 1, 2]]), torch.tensor([[0, 0, -1]])
    base = torch.tensor([[1, 1, 2]])
    figures = looks(even, base)
    assert (figures["spread"], figures["shapes"]) == (pytest.approx(1.0), 1.0)
    assert figures["worst"] == pytest.approx(0.5)  # the von Neumann winner
    figures = looks(one, base)
    assert (figures["spread"], figures["purple"], figures["shapes"]) == (
        pytest.approx(0.0),
        pytest.approx(2 / 3),
        pytest.approx(2 / 3),
    )
    assert figures["worst"] == pytest.approx(0.05)  # whoever makes cold ones alone
    over = 2 / 3 * (2 / 3 * 0.95 + 1 / 3 * 0.05) + 1 / 3 * 0.05
    assert figures["over_base"] == pytest.approx(over) == preferred(one, base)


@pytest.mark.slow
def test_a_small_study_goes_on_and_fills_the_table(tmp_path: Path) -> None:
    plan = smaller(CyclePlan())
    found = study(plan, tmp_path)
    assert set(found["runs"]) == {"gpm-0", "bradley_terry-0"}
    assert study(plan, tmp_path) == found  # nothing is made again
    table = markdown(found)
    assert table.count("\n| ") == 1 + 2 * len(plan.stages)
    with pytest.raises(ValueError, match="holds a study of another plan"):
        study(replace(plan, beta=1.0), tmp_path)
    assert json.loads((tmp_path / "found.json").read_text()) == found
