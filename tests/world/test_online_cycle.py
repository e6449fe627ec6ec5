"""The planted circle by hand, its votes, its figures; the whole study, small."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from diffalign.world.grammar import parse
from diffalign.world.online_cycle import (
    PROMPTS,
    CyclePlan,
    ballots_of,
    kinds_of,
    looks,
    markdown,
    open_prompts,
    planted,
    preferred,
    right,
    smaller,
    study,
)
from diffalign.world.shapes import draw


def test_the_sizes_run_in_a_circle() -> None:
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


def test_kinds_are_the_sizes_that_the_grammar_names() -> None:
    prompts = [parse(f"a {size} red circle on a white background") for size in ("small", "medium", "large")]
    pictures = draw(prompts * 8, np.random.default_rng(0))
    assert kinds_of(pictures).tolist() == [0, 1, 2] * 8
    assert kinds_of(torch.zeros(1, 3, 64, 64)).tolist() == [-1]


def test_prompts_leave_the_size_open_and_never_meet() -> None:
    train, held = open_prompts("train"), open_prompts("heldout")
    assert len(train) == len(held) == PROMPTS
    assert set(train).isdisjoint(held)
    assert all(p.size is None for p in (*train, *held))


def test_votes_follow_the_taste() -> None:
    votes = ballots_of(80, "train", 0)
    first, second = kinds_of(votes.pictures).chunk(2)
    assert votes.prompts[:80] == votes.prompts[80:]
    assert torch.equal(votes.label == 0.5, first == second)
    assert len(first.unique()) == 3
    assert right(planted(first, second) - 0.5, votes.label) == pytest.approx(0.95, abs=0.1)
    assert right(planted(second, first) - 0.5, votes.label) == pytest.approx(0.05, abs=0.1)


def test_figures_by_hand() -> None:
    even, small = torch.tensor([[0, 1, 2]]), torch.tensor([[0, 0, -1]])
    base = torch.tensor([[1, 1, 2]])
    figures = looks(even, base)
    assert (figures["spread"], figures["shapes"]) == (pytest.approx(1.0), 1.0)
    assert figures["worst"] == pytest.approx(0.5)  # the von Neumann winner
    figures = looks(small, base)
    assert (figures["spread"], figures["small"], figures["shapes"]) == (
        pytest.approx(0.0),
        pytest.approx(2 / 3),
        pytest.approx(2 / 3),
    )
    assert figures["worst"] == pytest.approx(0.05)  # whoever makes large ones alone
    over = 2 / 3 * (2 / 3 * 0.95 + 1 / 3 * 0.05) + 1 / 3 * 0.05
    assert figures["over_base"] == pytest.approx(over) == preferred(small, base)


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
