"""Optional fields of records: checked, written and read back, and cut with their images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diffalign.data import DataError, FileImage, Record, Region, read, write
from tests.data.data_helpers import pair, picture

FULL = replace(
    pair(0),
    margin=0.5,
    weight=2.0,
    soft=(0.75, 0.25),
    score=(0.5, 0.25),
    judged={"a": (1.0, 2.0), "smpo": (0.5, 0.5)},
    distance=0.125,
    regions=(Region(rectangle=(0.0, 0.25, 0.5, 1.0), outside=0.5), Region(weights=((0.0, 1.0), (2.0, 0.5)))),
    models=("x", "y"),
    prompts=("first", "second"),
)
FIELDS = ("margin", "weight", "soft", "score", "judged", "distance", "regions", "prompts", "models")


@pytest.mark.parametrize("format", ["folder", "webdataset"])
def test_all_fields_are_written_and_read_back(tmp_path: Path, format: str) -> None:
    write([FULL, pair(1)], tmp_path / "x", format)
    full, plain = read(tmp_path / "x")
    assert all(getattr(full, name) == getattr(FULL, name) for name in FIELDS)
    assert all(getattr(plain, name) == getattr(pair(1), name) for name in FIELDS)


def test_masks_are_paths_beside_the_lines(tmp_path: Path) -> None:
    row = {"image_0": "a", "image_1": "b", "prompt": "p", "label_0": 1, "regions": [{"mask": "m.png"}, None]}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    (record,) = read(tmp_path)
    assert record.regions == (Region(mask=FileImage(tmp_path / "m.png")), None)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"margin": "big"}, "margin is 'big'; it must be a number"),
        ({"weight": -1}, "weight is -1.0; it must be 0 or more"),
        ({"soft": 1.5}, r"soft is \(1.5, -0.5\)"),
        ({"score": [1]}, "2 images but 1 score"),
        ({"score": [1, None]}, r"score\[1\] is None"),
        ({"judged": [1, 2]}, "judged is .*object, scorer to"),
        ({"judged": {"a": [1, 2, 3]}}, "2 images but 3 judged.a"),
        ({"distance": -1}, "distance is -1.0"),
        ({"regions": {"rectangle": [0, 0, 1, 1]}}, "regions is .*list"),
        ({"regions": [None]}, "2 images but 1 regions"),
        ({"regions": [{"rectangle": [0, 0, 1]}, None]}, "list of 4 numbers"),
        ({"regions": [{"rectangle": [0.5, 0, 0.5, 1]}, None]}, "left < right"),
        ({"regions": [{"rectangle": [0, 0, 1, 1], "weights": [[1]]}, None]}, "rectangle and weights"),
        ({"regions": [{"weights": [[1], [1, 2]]}, None]}, "rows of equal length"),
        ({"regions": [{"weights": [[0, 0]]}, None]}, "not all 0"),
        ({"regions": [{"weights": [[1, -1]]}, None]}, "0 or more"),
        ({"regions": [{"circle": 1}, None]}, "a region is"),
        ({"regions": [{"rectangle": [0, 0, 1, 1], "outside": -1}, None]}, "outside is -1"),
    ],
)
def test_bad_fields_are_named(tmp_path: Path, field: dict[str, Any], message: str) -> None:
    row = {"image_0": "a", "image_1": "b", "prompt": "p", "label_0": 1, **field}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match=message) as error:
        read(tmp_path)
    assert "metadata.jsonl line 1" in str(error.value)


@pytest.mark.parametrize("field", ["margin", "soft", "distance"])
def test_what_belongs_to_pairs_is_refused_elsewhere(field: str) -> None:
    ranked = Record(prompt="", images=(picture(0), picture(1)), kind="ranking", values=(1.0, 2.0))
    with pytest.raises(DataError, match=f"{field} is for pairs"):
        replace(ranked, **{field: (0.5, 0.5) if field == "soft" else 1.0})
    with pytest.raises(DataError, match="scores of a ranking are its values"):
        replace(ranked, score=(1.0, 2.0))


def test_some_images_take_their_own_fields_with_them() -> None:
    swapped = FULL.only((1, 0), "pair", (1.0, 0.0))
    assert (swapped.soft, swapped.score, swapped.judged["a"]) == ((0.25, 0.75), (0.25, 0.5), (2.0, 1.0))
    assert (swapped.prompts, swapped.models, swapped.margin) == (("second", "first"), ("y", "x"), 0.5)
    assert swapped.regions == (FULL.regions or ())[::-1]
    single = FULL.only([1], "labels", [1.0])
    assert (single.soft, single.margin, single.distance, single.score) == (None, None, None, (0.25,))
    assert FULL.only((0, 1), "ranking", (2.0, 1.0)).score is None


@pytest.mark.parametrize(
    ("record", "gap"),
    [(FULL, 0.25), (replace(FULL, score=None), 0.5), (pair(0), 1.0), (pair(0, 0.5), 0.0)],
)
def test_the_gap_is_of_the_best_numbers_there_are(record: Record, gap: float) -> None:
    assert record.gap == gap
