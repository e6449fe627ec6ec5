"""Filters, strength, posterior and named labels, each on a few records by hand; labels files."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffalign.data import DataError, FileImage, Record, write
from diffalign.data.derived import Derived, read_labelled, with_labels, write_labels
from diffalign.data.posterior import bayes, calibrate, flip_posterior
from diffalign.data.select import SelectOptions, check_needs, select
from diffalign.data.strength import StrengthOptions, strength
from tests.data.data_helpers import pair, picture


def judged(seed: int, a: float, b: float, p0: float = 1.0, **fields: Any) -> Record:
    """A pair whose first image is a above the second by scorer a, and b above it by scorer b."""
    return replace(pair(seed, p0), judged={"a": (a, 0.0), "b": (1.0 + b, 1.0)}, **fields)


RECORDS = [judged(0, 2, 1), judged(1, 2, -1), judged(2, -2, -1), judged(3, -2, -1, 0.0), judged(4, 2, 1, 0.5)]
RANKED = Record(
    prompt="", images=(picture(0), picture(1)), kind="ranking", values=(0.0, 0.0), judged={"phi": (0.2, 0.8)}
)


def kept(records: list[Record], **options: Any) -> list[int]:
    out, lines = select(records, SelectOptions(**options))
    assert f"{len(out)} of {len(records)} comparisons kept" in lines[-1]
    return [int(r.source.split()[1]) for r in out]


def test_every_scorer_must_see_the_winner_above() -> None:
    assert kept(RECORDS, agree=("a", "b")) == [0, 3]
    assert kept(RECORDS, agree=("a",)) == [0, 1, 3]


def test_pairs_that_no_scorer_contradicts_by_much_and_ties_that_all_confirm() -> None:
    """Gaps, winner minus loser: (2, 1), (2, -1), (-2, -1), (2, 1); the last is a tie of gaps (2, 1)."""
    assert kept(RECORDS, least={"a": 0.0, "b": 0.0}) == [0, 3]
    assert kept(RECORDS, least={"a": 0.0, "b": -1.0}) == [0, 1, 3]  # the bound itself is kept
    assert kept(RECORDS, least={"a": -2.0}) == [0, 1, 2, 3]
    assert kept(RECORDS, least={"b": 0.0}, tie_most={"a": 2.0, "b": 1.0}) == [0, 3, 4]
    assert kept(RECORDS, least={"b": 0.0}, tie_most={"a": 2.0, "b": 0.9}) == [0, 3]
    assert kept(RECORDS, tie_most={"b": 1.0}) == [0, 1, 2, 3, 4]
    turned = [judged(7, -2, -1, 0.5), judged(8, -2, 1, 0.5)]  # the gap's sign means nothing in a tie
    assert kept(turned, tie_most={"a": 2.0, "b": 1.0}) == [7, 8]


def test_pairs_too_near_in_feature_space_go() -> None:
    records = [replace(pair(i), distance=i / 10) for i in range(5)]
    assert kept(records, min_distance=0.2) == [2, 3, 4]
    with pytest.raises(DataError, match=r"no feature distance; score the data first"):
        kept([pair(0)], min_distance=0.2)


# Standardised gaps are 1 or -1 for each scorer, so that mean and spread are 1, 0 or 0, 1 or -1, 0.
@pytest.mark.parametrize(
    ("options", "values", "margins"),
    [
        ({"actions": ("drop",), "drop_below": 0.5}, [1.0, 0.0, 0.5], [None] * 3),
        ({"actions": ("drop",), "drop_spread": 0.5, "drop_below": -9}, [1.0, 1.0, 0.0, 0.5], [None] * 4),
        ({"actions": ("flip",)}, [1.0, 1.0, 0.0, 0.0, 0.5], [None] * 5),
        ({"actions": ("soften",)}, [0.8413447, 0.5, 0.1586553, 0.1586553, 0.5], [None] * 5),
        ({"actions": ("margin",), "margin_scale": 2.0}, [1.0, 1.0, 1.0, 0.0, 0.5], [2, 0, 0, 2, None]),
        ({"actions": ("flip", "drop", "margin"), "drop_below": 0.5}, [1.0, 0.0, 0.0, 0.5], [1, 1, 1, None]),
    ],
)
def test_strength_by_mean_and_spread(
    options: dict[str, Any], values: list[float], margins: list[float | None]
) -> None:
    out = strength(RECORDS, StrengthOptions(scorers=("a", "b"), **options))
    assert [r.values[0] for r in out] == pytest.approx(values)
    assert [r.margin for r in out] == margins


def test_softening_weighs_the_spread() -> None:
    out = strength(
        [judged(0, 3, 1), judged(1, 1, 1)], StrengthOptions(scorers=("a", "b"), actions=("soften",))
    )
    a, b = 3 / math.sqrt(5), 1.0  # in units of the root mean square gap
    z = (a + b) / 2 / math.sqrt(((a - b) / 2) ** 2 + 1)
    assert out[0].values[0] == pytest.approx(0.5 * (1 + math.erf(z / math.sqrt(2))))


def test_posterior_finds_the_flip_rate_and_the_flipped() -> None:
    rng = np.random.default_rng(0)
    gaps = rng.standard_normal((4000, 2))
    truth = rng.random(4000) < 1 / (1 + np.exp(-gaps @ [3.0, 1.5]))
    flips = rng.random(4000) < 0.2
    labels = (truth ^ flips).astype(float)
    p, rate = flip_posterior(gaps, labels)
    assert rate == pytest.approx(0.2, abs=0.03)
    assert ((p > 0.5) == truth).mean() > 0.88 > (labels == truth).mean()
    # calibrated: of those called 80 to 90 % likely, 80 to 90 % are true
    band = (p > 0.8) & (p < 0.9)
    assert truth[band].mean() == pytest.approx(p[band].mean(), abs=0.05)
    clean, none = flip_posterior(gaps, truth.astype(float))
    assert none < 0.03
    assert ((clean > 0.5) == truth).mean() > 0.97


def test_bayes_by_hand_and_a_separable_calibration() -> None:
    q = np.array([0.5, 0.9, 0.9, 0.3])
    y = np.array([1.0, 1.0, 0.0, 0.5])
    expected = [0.8, 0.72 / 0.74, 0.18 / 0.26, 0.5 * 0.24 / 0.38 + 0.5 * 0.06 / 0.62]
    np.testing.assert_allclose(bayes(q, y, 0.2), expected)
    found = calibrate(np.array([[1.0], [2.0], [-1.0]]), np.array([1.0, 1.0, 0.0]))
    assert 3 < found[0] < 30  # finite, by the ridge
    with pytest.raises(DataError, match="20 or more"):
        flip_posterior(np.ones((3, 1)), np.ones(3))


def test_the_posterior_becomes_the_label() -> None:
    rng = np.random.default_rng(1)
    gaps = rng.standard_normal(60)
    records = [judged(i, float(g), 0.0, 1.0 if (g > 0) == (i > 5) else 0.0) for i, g in enumerate(gaps)]
    out, _ = select([*records, RECORDS[4]], SelectOptions(posterior=("a",)))
    assert out[-1] == RECORDS[4]
    assert all((r.values[0] > 0.5) == (g > 0) for r, g in zip(out, gaps, strict=False) if abs(g) > 0.5)
    assert all(sum(r.values) == pytest.approx(1) for r in out)


def test_named_labels_take_their_places() -> None:
    record = replace(RECORDS[0], judged={"smpo": (0.6, 0.4), "calibrated": (0.7, 0.3), "b": (1.0, 4.0)})
    (out,), lines = select(
        [record], SelectOptions(soft="smpo", score="calibrated", margin="b", margin_scale=2)
    )
    assert (out.soft, out.score, out.margin, out.values) == ((0.6, 0.4), (0.7, 0.3), -6.0, (1, 0))
    assert len(lines) == 3
    (ranked,), _ = select([RANKED], SelectOptions(score="phi"))
    assert (ranked.values, ranked.undecided) == ((0.2, 0.8), False)


@pytest.mark.parametrize(
    ("records", "options", "message"),
    [
        (RECORDS, {"score": "phi"}, r"no scores called 'phi' \(there are: a, b\); score the data first"),
        (RECORDS, {"agree": ("c",)}, "no scores called 'c'"),
        (RECORDS[1:2], {"agree": ("a", "b")}, "leaves no comparison .agree a, b: 0 of 1"),
        ([RANKED], {"agree": ("phi",)}, "for pairs, and the data hold ranking"),
        ([RANKED], {"soft": "phi"}, "soft is for pairs"),
        ([judged(0, 0, 1)], {"strength": StrengthOptions(scorers=("a", "b"))}, "the same score"),
    ],
)
def test_data_that_lack_what_an_option_uses(
    records: list[Record], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        select(records, SelectOptions(**options))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StrengthOptions(scorers=("a",)), "two scorers or more"),
        (lambda: StrengthOptions(scorers=("a", "b"), actions=()), "actions is empty"),
        (lambda: StrengthOptions(scorers=("a", "b"), flip_below=1.0), "flip_below is 1.0"),
        (lambda: StrengthOptions(scorers=("a", "b"), drop_spread=0.0), "drop_spread is 0.0"),
        (lambda: SelectOptions(min_distance=-1), "min_distance is -1"),
        (lambda: SelectOptions(margin_scale=math.inf), "margin_scale is inf"),
        (lambda: SelectOptions(least={"a": math.nan}), r"select\.least\.a is nan"),
        (lambda: SelectOptions(tie_most={"a": -0.1}), r"select\.tie_most\.a is -0\.1"),
        (lambda: SelectOptions(agree=("a",), tie_most={"a": 0.1}), "agree leaves no ties"),
    ],
)
def test_wrong_options_are_refused(make: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make()


def test_needs_are_checked_before_training() -> None:
    check_needs(RECORDS, frozenset({"soft", "tensors"}))
    check_needs([RANKED], frozenset({"score"}))
    for need, remedy in (("margin", "data.select.margin"), ("score", "data.select.score")):
        with pytest.raises(DataError, match=f"needs a {need}, .*{remedy}"):
            check_needs(RECORDS, frozenset({need}))
    with pytest.raises(DataError, match="soft labels are of pairs"):
        check_needs([RANKED], frozenset({"soft"}))


def test_labels_beside_data_make_records_of_them(tmp_path: Path) -> None:
    write([pair(0), pair(1)], tmp_path / "data", "folder")
    made = [
        Derived(of=1, images=(1, 0), record=judged(1, 3, 1, margin=2.0).only((1, 0), "pair", (1.0, 0.0))),
        Derived(of=0, images=(0,), record=judged(0, 3, 1).only((0,), "labels", (1.0,))),
    ]
    made = [replace(d, record=replace(d.record, prompt=f"prompt {d.of}")) for d in made]
    assert write_labels(made, tmp_path / "labels.jsonl") == 2
    found = read_labelled(tmp_path / "data", tmp_path / "labels.jsonl")
    assert [r.kind for r in found] == ["pair", "labels"]
    assert found[0].margin == 2.0
    assert found[0].judged == {"a": (0.0, 3.0), "b": (1.0, 2.0)}
    assert [i.read() for i in found[0].images] == [i.read() for i in pair(1).images[::-1]]
    assert isinstance(found[0].images[0], FileImage)
    assert len(read_labelled(tmp_path / "data", tmp_path / "labels.jsonl", max_pairs=1)) == 1
    with pytest.raises(FileExistsError):
        write_labels(made, tmp_path / "labels.jsonl")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"of": 5}, "of is 5, and the data hold 2"),
        ({"prompt": "other"}, "the prompt is 'other', that of record 0 is 'prompt 0'.*other data"),
        ({"images": [0, 2]}, r"images is \[0, 2\]"),
        ({"values": [1]}, "2 images but 1 values"),
        ({"values": ["x", 0]}, "values is"),
        ({"kind": "triple"}, "kind is 'triple'"),
        ({"margin": "x"}, "margin is 'x'"),
    ],
)
def test_labels_of_other_data_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    row = {"of": 0, "prompt": "prompt 0", "images": [0, 1], "kind": "pair", "values": [1, 0], **change}
    (tmp_path / "l.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match=message):
        with_labels([pair(0), pair(1)], tmp_path / "l.jsonl")
    with pytest.raises(FileNotFoundError, match="no labels at"):
        with_labels([pair(0)], tmp_path / "none.jsonl")
