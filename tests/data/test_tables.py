"""HPDv2's lists and tables of votes: what of them becomes a record, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffalign.data import DataError, read
from tests.data.data_helpers import picture

# ---------------------------------------------------------------------- HPDv2


def hpd(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    for file in ("a.png", "b.png"):
        (folder / file).write_bytes(picture(ord(file[0])).read())
    (folder / name).write_text(json.dumps(rows))
    return folder / name


def test_both_names_of_the_path_field_and_images_beside_the_json(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "file_path": ["a.png", "b.png"], "human_preference": [0, 1]},
        {"prompt": "p", "image_path": ["a.png", "b.png"], "human_preference": [1, 0]},
    ]
    found = read(hpd(tmp_path, "train.json", rows))
    assert [r.values for r in found] == [(0, 1), (1, 0)]
    assert found[0].images == found[1].images


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"file_path": ["a.png", "b.png"], "human_preference": [1, 0]}, "prompt is None"),
        ({"prompt": "p", "human_preference": [1, 0]}, "file_path .or image_path. must be a list"),
        ({"prompt": "p", "file_path": ["a.png", "b.png"]}, "neither human_preference"),
        (
            {"prompt": "p", "file_path": ["a.png", "b.png"], "human_preference": [2, 1]},
            r"human_preference\[0\] is 2",
        ),
        (
            {"prompt": "p", "file_path": ["c.png", "b.png"], "human_preference": [1, 0]},
            "'c.png' is in none of",
        ),
        ({"prompt": "p", "file_path": ["a.png", "b.png"], "rank": [1]}, "2 images but 1 values"),
    ],
)
def test_bad_hpdv2_entries_are_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        read(hpd(tmp_path, "train.json", [row]))
    assert "train.json" in str(error.value)


def test_an_empty_list_and_broken_json(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data set is empty"):
        read(hpd(tmp_path, "train.json", []))
    (tmp_path / "train.json").write_text("[{")
    with pytest.raises(DataError, match="not valid JSON"):
        read(tmp_path)


# ---------------------------------------------------------------------- votes


def votes(folder: Path, *rows: dict[str, Any]) -> Path:
    (folder / "v.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder / "v.jsonl"


ROW = {"prompt": "p", "image1": "a.png", "image2": "b.png", "votes_image1": 3, "votes_image2": 1}


def test_vote_shares_become_soft_labels_and_pairs_without_votes_are_left_out(tmp_path: Path) -> None:
    found = read(
        votes(tmp_path, ROW, {**ROW, "votes_image1": 0, "votes_image2": 0}, {**ROW, "votes_image2": 3})
    )
    assert [r.values for r in found] == [(0.75, 0.25), (0.5, 0.5)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"votes_image1": -1}, "line 2: votes_image1 is -1"),
        ({"votes_image1": "many"}, "line 2: votes_image1 is 'many'"),
        ({"votes_image2": None}, "line 2: votes_image2 is None"),
        ({"prompt": None}, "line 2: prompt is None"),
        ({"image1": 5}, "line 2: image1 is 5"),
    ],
)
def test_bad_votes_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(votes(tmp_path, ROW, {**ROW, **change}))


def test_a_table_without_captions_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing column 'prompt'"):
        read(votes(tmp_path, {k: v for k, v in ROW.items() if k != "prompt"}))


def test_parquet_tables_may_hold_the_images(tmp_path: Path) -> None:
    cells = [{"bytes": picture(i).read(), "path": None} for i in (1, 2)]
    row = {**ROW, "image1": cells[0], "image2": cells[1]}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "v.parquet")
    assert [image.read() for image in read(tmp_path)[0].images] == [c["bytes"] for c in cells]
