"""The table of what scorers learn, in its smallest form, and what it is made of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from diffalign.world.scorer_studies import CIRCLE, adjusted_rand, circle_votes, rivals
from diffalign.world.scorer_table import TASTES, TablePlan, make_table, ratings, tower


def test_adjusted_rand_by_hand() -> None:
    assert adjusted_rand([0, 0, 1, 1], [5, 5, 3, 3]) == 1.0
    assert adjusted_rand([0, 0, 0, 0], [0, 0, 1, 1]) == 0.0
    # pairs: one together in both of 6; rows 2, columns 2: (1 - 2/3) / (2 - 2/3) with tables [[2,0],[1,1]]
    assert adjusted_rand([0, 0, 1, 1], [0, 0, 0, 1]) == pytest.approx((1 - 2 * 3 / 6) / (2.5 - 1))
    assert adjusted_rand([0, 1, 0, 1], [0, 0, 1, 1]) == pytest.approx((0 - 4 / 6) / (2 - 4 / 6))
    with pytest.raises(ValueError, match="3 and 2 items"):
        adjusted_rand([0, 0, 1], [0, 1])


def test_the_circle_has_no_best_colour() -> None:
    votes = circle_votes(300, 0)
    reddest = [[float(p[c].float().mean()) for c in range(3)] for p in (votes[0].first, votes[0].second)]
    assert len(CIRCLE) == len(reddest[0])
    assert 0.4 < sum(v.label for v in votes) / 300 < 0.6
    assert {v.prompt for v in votes} == {"a circle"}
    assert [r.values for r in ratings(votes[:1])] == [(1 + 9 * votes[0].label,), (10 - 9 * votes[0].label,)]


def test_the_order_turns_the_votes_on_first_and_last_round() -> None:
    circle, order = (circle_votes(45, 0, cyclic=cyclic) for cyclic in (True, False))
    pairs = list(zip(circle, order, strict=True))
    assert all(torch.equal(torch.as_tensor(a.first), torch.as_tensor(b.first)) for a, b in pairs)
    assert 0.2 < sum(a.label != b.label for a, b in pairs) / len(pairs) < 0.47


def test_the_rivals_differ_in_form_alone() -> None:
    both = rivals(tower(TablePlan()), 0)
    count = {name: sum(p.numel() for p in scorer.head.parameters()) for name, scorer in both.items()}
    assert 1 <= count["bradley_terry"] / count["gpm"] < 1.05
    x = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        first, second = (both["bradley_terry"].compare_tensor(x, x.roll(i, 0), ["a"] * 3) for i in (1, 2))
        cycle = both["gpm"].compare_tensor(x, x.roll(1, 0), ["a"] * 3).sum()
    assert abs(float(first.sum())) < 1e-5  # worths of a round trip add up to nothing
    torch.testing.assert_close(second, -first.roll(2, 0))
    assert abs(float(cycle)) > 1e-6


@pytest.mark.slow
def test_the_whole_table(tmp_path: Path) -> None:
    plan = TablePlan(votes=40, heldout=20, steps=2, mps_steps=4, head_steps=2, users=4)
    found = make_table(plan, tmp_path / "table.md")
    assert json.loads((tmp_path / "table.json").read_text()) == json.loads(json.dumps(found))
    names = [row["scorer"] for row in found["rows"]]
    assert names[1:5] == ["PickScore type", "HPS type", "ImageReward type", "listwise"]
    assert names.count("MPS type") == 4
    text = (tmp_path / "table.md").read_text()
    assert "adjusted Rand" in text
    assert list(found["alone"]) == list(TASTES)
    assert all(0.3 < share < 1.7 for share in found["alone"].values())
    assert text.count("\n| ") == len(names) + 1 + 5
