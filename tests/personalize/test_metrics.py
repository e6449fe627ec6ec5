"""Personal figures by hand, on people with a known answer, and plots that hold what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from diffalign.personalize.metrics import (
    compare_people,
    confusion,
    judge_sd,
    outcomes,
    personal_rate,
    seen_unseen,
    swapped,
    vote_curve,
)
from diffalign.personalize.plots import plot_confusion, plot_curves


def test_outcomes_have_the_tie_margin() -> None:
    found = outcomes([1.0, 0.2, 0.0, 0.0], [0.0, 0.0, 0.25, 0.3], 1.0)
    assert found.tolist() == [1.0, 0.5, 0.5, 0.0]
    assert outcomes([0.2], [0.0], 1.0, tie_margin_sd=0.0).tolist() == [1.0]


def test_people_count_alike_however_many_pictures_they_judged() -> None:
    found = personal_rate({"anna": np.ones(1000), "ben": [0.0, 0.5], "carla": [0.5]})
    assert found.value == pytest.approx((1 + 0.25 + 0.5) / 3)
    assert (found.people, found.worst, found.worst_rate) == (3, "ben", 0.25)
    assert found.below_half == pytest.approx(1 / 3)
    assert found.low <= found.value <= found.high
    sure = personal_rate({str(i): [1.0] for i in range(10)})
    assert sure.low == pytest.approx(0.025**0.1)  # Clopper and Pearson with ten people


def test_the_interval_covers_people_not_pictures() -> None:
    """Twenty people, half served and half not: a thousand pictures each do not make it narrow."""
    won = {str(i): np.full(1000, i % 2) for i in range(20)}
    found = personal_rate(won)
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 20), rel=0.15)


def test_each_person_is_compared_by_their_own_judge() -> None:
    rng = np.random.default_rng(0)
    base = {n: rng.normal(size=(6, 4)) * s for n, s in (("anna", 1.0), ("ben", 100.0))}
    sd = judge_sd(base)
    assert sd["ben"] / sd["anna"] > 50
    ours = {"anna": base["anna"] + 1.0, "ben": base["ben"] - 100.0}
    found = compare_people(ours, base, sd)
    assert dict(found.by_person) == {"anna": 1.0, "ben": 0.0}
    with pytest.raises(ValueError, match=r"1 people are not on all sides \(ben\)"):
        compare_people({"anna": base["anna"]}, base, sd)


def test_seen_and_unseen_people() -> None:
    won = {"a": [1.0], "b": [0.0], "c": [1.0], "d": [1.0]}
    found = seen_unseen(won, ["a", "b"])
    assert (found["seen"].value, found["unseen"].value) == (0.5, 1.0)
    assert list(seen_unseen(won, ["a", "b", "c"])) == ["seen"]


def test_a_curve_rises_where_every_person_gains() -> None:
    rng = np.random.default_rng(0)
    level = rng.random(12) * 0.4
    won = {k: {str(i): [v + 0.05 * np.log2(k)] for i, v in enumerate(level)} for k in (8, 1, 2)}
    found = vote_curve(won)
    assert found.votes == (1, 2, 8)
    assert found.gain.value == pytest.approx(0.15)
    assert found.rises
    flat = vote_curve({k: {str(i): [v] for i, v in enumerate(level)} for k in (1, 2)})
    assert not flat.rises
    with pytest.raises(ValueError, match="the same people at each"):
        vote_curve({1: {"a": [1.0], "b": [1.0]}, 2: {"a": [1.0], "c": [1.0]}})


def planted(specific: float, people: int = 5) -> np.ndarray:
    rng = np.random.default_rng(1)
    noise, prompt = rng.normal(size=(people, people, 40)), 3 * rng.normal(size=(1, people, 40))
    return noise + prompt + specific * np.eye(people)[:, :, None] + 10 * np.arange(people)[None, :, None]


def test_the_diagonal_of_specific_pictures_stands_out() -> None:
    names = list("abcde")
    found = confusion(planted(3.0), names)
    assert found.top1.value == 1.0
    assert found.top5.value == 1.0
    assert found.margin.low > 0.5
    assert set(found.ranks.values()) == {1}
    assert found.table.mean(0) == pytest.approx(np.zeros(5), abs=1e-12)
    blind = confusion(np.repeat(planted(0.0)[:1], 5, 0), names)  # the same pictures for everybody
    assert blind.margin.value == pytest.approx(0.0)
    assert blind.top1.value == pytest.approx(0.2)


def test_a_table_by_hand() -> None:
    scores = np.array([[[2.0, 2.0], [0.0, 2.0]], [[0.0, 0.0], [4.0, 2.0]]])
    found = confusion(scores, ["a", "b"])
    spread = np.std([0.0, 2.0, 4.0, 2.0])
    assert found.table == pytest.approx(np.array([[1.0, -1.0 / spread], [-1.0, 1.0 / spread]]))
    assert found.margin.value == pytest.approx((2.0 + 2.0 / spread) / 2)


def test_swaps_are_with_another_taste() -> None:
    assert swapped(["a", "b", "c"]) == {"a": "b", "b": "c", "c": "a"}
    assert swapped(["a", "b", "c"], {"a": 0, "b": 0, "c": 1}) == {"a": "c", "b": "c", "c": "a"}
    with pytest.raises(ValueError, match="'a' has nobody of another taste"):
        swapped(["a", "b"], {"a": 0, "b": 0})


@pytest.mark.slow
def test_plots_are_written(tmp_path: Path) -> None:
    from PIL import Image

    file = plot_confusion(confusion(planted(3.0), list("abcde")), tmp_path / "deep" / "confusion.png")
    won = {k: {str(i): [0.1 * k] for i in range(3)} for k in (1, 8)}
    lines = plot_curves({"ours": vote_curve(won)}, tmp_path / "curve.png")
    for path in (file, lines):
        with Image.open(path) as image:
            assert min(image.size) > 300
            assert len(image.convert("RGB").getcolors(1 << 20)) > 20


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="two of them at least, got 1"):
        personal_rate({"a": [1.0]})
    with pytest.raises(ValueError, match="outcomes of 'b' must be at least one"):
        personal_rate({"a": [1.0], "b": []})
    with pytest.raises(ValueError, match=r"sd \(0\.0\) above 0"):
        outcomes([1.0], [0.0], 0.0)
    with pytest.raises(ValueError, match="they must be"):
        confusion(np.zeros((2, 3, 4)), ["a", "b"])
    with pytest.raises(ValueError, match="the judge of b scores all pictures alike"):
        confusion(np.array([[[1.0], [0.0]], [[0.0], [0.0]]]), ["a", "b"])
