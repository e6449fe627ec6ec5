"""Every format: written, recognised and read back; and what each refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffalign.data import DataError, ParquetImage, Record, read, readers, write
from diffalign.data.readers import detect
from scorers.registry import RegistryError
from tests.data.data_helpers import pair, picture

SAMPLES = Path(__file__).parents[2] / "samples" / "preferences"
PAIRS = [
    replace(pair(i, p), rater=str(i), models=("old", "new")) for i, p in enumerate((1.0, 0.0, 1.0, 0.5, 0.0))
]
CLEAR = [r for r in PAIRS if not r.undecided]
SOFT = [pair(i, p) for i, p in enumerate((0.9, 0.25, 0.5, 1.0))]
RANKED = [
    Record(
        prompt="r",
        images=tuple(map(picture, range(i, i + 4))),
        kind="ranking",
        values=(-2.0, -1.0, -4.0, -3.0),
    )
    for i in range(3)
]
LIKED = [Record(prompt=f"l{i}", images=(picture(i),), kind="labels", values=(i / 2,)) for i in range(3)]
OWN = [replace(PAIRS[0], prompts=("a cat", "a dog")), PAIRS[1]]

CASES = [
    ("pickapic", "pairs.parquet", PAIRS),
    ("hpdv2", "hpd", [replace(r, rater=None, models=()) for r in PAIRS]),
    ("hpdv2", "hpd", RANKED),
    ("votes", "votes.jsonl", SOFT),
    ("votes", "votes.csv", [replace(r, models=("old", "new")) for r in SOFT]),
    ("votes", "votes.parquet", SOFT),
    ("folder_wl", "wl", [replace(r, rater=None, models=()) for r in CLEAR]),
    ("folder", "f", PAIRS),
    ("folder", "f", SOFT),
    ("folder", "f", OWN),
    ("folder", "f", LIKED),
    ("folder", "f", RANKED),
    ("webdataset", "w", PAIRS),
    ("webdataset", "w", SOFT),
    ("webdataset", "w", OWN),
    ("webdataset", "w", LIKED),
    ("webdataset", "w", RANKED),
]


def content(record: Record, winner_first: bool = False) -> tuple[Any, ...]:
    """All that a format must keep."""
    order = (1, 0) if winner_first and record.values[1] > record.values[0] else range(len(record.images))
    images = [(record.images[i].read(), round(record.values[i], 6), record.prompt_of(i)) for i in order]
    return (record.kind, record.prompt, images, record.rater, record.models)


@pytest.mark.parametrize(("format", "name", "records"), CASES)
def test_written_records_are_recognised_and_read_back(
    format: str, name: str, records: list[Record], tmp_path: Path
) -> None:
    write(records, tmp_path / name, format)
    assert detect(tmp_path / name) == format
    found = read(tmp_path / name)
    swapped = format == "folder_wl"
    assert [content(r) for r in found] == [content(r, swapped) for r in records]
    assert all(str(tmp_path / name) in r.source or str(tmp_path) in r.source for r in found)
    assert [content(r) for r in read(tmp_path / name, format, max_pairs=2)] == [content(r) for r in found[:2]]


@pytest.mark.parametrize(
    "name",
    ["folder", "folder_wl", "hpdv2", "hpdv2/train.json", "pickapic", "votes/votes.jsonl", "webdataset"],
)
def test_samples_are_recognised(name: str) -> None:
    assert detect(SAMPLES / name) == name.partition("/")[0]
    records = read(SAMPLES / name)
    assert len(records) == 200
    assert records[0].images[0].read()


def test_every_reader_is_found_and_says_what_it_reads() -> None:
    assert readers.names() == [
        "event_log",
        "folder",
        "folder_wl",
        "hpdv2",
        "images",
        "pickapic",
        "votes",
        "webdataset",
    ]
    assert all(readers.get(name).summary for name in readers.names())


def test_unknown_formats_are_answered_with_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="did you mean 'pickapic'"):
        read(tmp_path, "pickpic")
    with pytest.raises(DataError, match=r"no format that is recognised.*votes"):
        read(tmp_path)
    with pytest.raises(FileNotFoundError, match="no preferences at"):
        read(tmp_path / "nothing")
    with pytest.raises(DataError, match="max_pairs is 0"):
        read(tmp_path, max_pairs=0)


def test_a_folder_of_two_formats_is_not_guessed(tmp_path: Path) -> None:
    write(CLEAR, tmp_path, "folder")
    write(CLEAR, tmp_path, "folder_wl")
    with pytest.raises(DataError, match=r"fits several formats.*format="):
        read(tmp_path)


# ---------------------------------------------------------------------- Pick-a-Pic


def rewrite(path: Path, **columns: list[Any] | None) -> Path:
    """Change or drop columns of a parquet file."""
    rows = pq.read_table(path).to_pydict()
    rows.update({name: values for name, values in columns.items() if values is not None})
    pq.write_table(pa.table({n: v for n, v in rows.items() if columns.get(n, ()) is not None}), path)
    return path


@pytest.fixture
def pickapic(tmp_path: Path) -> Path:
    write(PAIRS, tmp_path / "pairs.parquet", "pickapic")
    return tmp_path / "pairs.parquet"


@pytest.mark.parametrize("column", ["caption", "label_0"])
def test_a_missing_column_is_named(pickapic: Path, column: str) -> None:
    with pytest.raises(DataError, match=rf"pairs.parquet: missing column '{column}'; there are .*jpg_1"):
        read(rewrite(pickapic, **{column: None}))


def test_the_variant_without_images_is_named(pickapic: Path) -> None:
    with pytest.raises(DataError, match="variant without images"):
        read(rewrite(pickapic, jpg_0=None, jpg_1=None))


def test_rows_without_label_are_left_out(pickapic: Path) -> None:
    found = read(rewrite(pickapic, has_label=[True, False, True, True, False]))
    assert [r.source.split()[-1] for r in found] == ["0", "2", "3"]


def test_nothing_labelled_is_an_empty_data_set(pickapic: Path) -> None:
    with pytest.raises(DataError, match="data set is empty"):
        read(rewrite(pickapic, has_label=[False] * 5))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label_0": [1.0, 0.0, 0.7, 0.5, 0.0]}, r"row 2: label_0 is 0.7; it must be 0, 0.5 .tie. or 1"),
        ({"label_0": [1.0, 0.0, None, 0.5, 0.0]}, "row 2: label_0 is None"),
        (
            {"label_1": [1.0, 1.0, 0.0, 0.5, 1.0]},
            "row 0: label_0 is 1.0 and label_1 is 1.0; they must add up",
        ),
        ({"caption": ["a", "b", "c", None, "e"]}, "row 3: caption is None"),
    ],
)
def test_bad_cells_are_named(pickapic: Path, columns: dict[str, list[Any]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(rewrite(pickapic, **columns))


def test_small_files_without_optional_columns_will_do(pickapic: Path) -> None:
    rewrite(pickapic, label_1=None, has_label=None, user_id=None, model_0=None, ranking_id=None)
    assert [r.values for r in read(pickapic)] == [r.values for r in PAIRS]
    assert read(pickapic)[0].rater is None


def test_images_are_read_from_their_row_group_and_named_by_row_of_the_file(tmp_path: Path) -> None:
    from diffalign.data.writers import write_pickapic

    write_pickapic(PAIRS, tmp_path / "x.parquet", rows_per_group=2)
    image = read(tmp_path / "x.parquet")[3].images[1]
    assert isinstance(image, ParquetImage)
    assert image.where.endswith("x.parquet row 3 column jpg_1")
    assert image.read() == PAIRS[3].images[1].read()


def test_a_folder_of_parts_is_read_in_order_but_splits_are_not_mixed(tmp_path: Path) -> None:
    write(PAIRS[:2], tmp_path / "data" / "train-00000-of-00002.parquet", "pickapic")
    write(PAIRS[2:], tmp_path / "data" / "train-00001-of-00002.parquet", "pickapic")
    assert [r.prompt for r in read(tmp_path)] == [r.prompt for r in PAIRS]
    write(PAIRS[:1], tmp_path / "data" / "test-00000-of-00001.parquet", "pickapic")
    with pytest.raises(DataError, match=r"several splits \(test, train\)"):
        read(tmp_path, "pickapic")
    assert len(read(tmp_path / "data" / "train-*.parquet")) == 5


def test_an_empty_cell_is_an_os_error(pickapic: Path) -> None:
    record = read(rewrite(pickapic, jpg_0=[None, *(r.images[0].read() for r in PAIRS[1:])]))[0]
    with pytest.raises(OSError, match="no image bytes"):
        record.images[0].read()


# ---------------------------------------------------------------------- folders


def test_w_and_l_must_match_and_have_captions(tmp_path: Path) -> None:
    write(CLEAR, tmp_path, "folder_wl")
    (tmp_path / "w" / "00000.txt").unlink()
    assert read(tmp_path)[0].prompt == CLEAR[0].prompt
    (tmp_path / "l" / "00000.txt").unlink()
    with pytest.raises(DataError, match=r"00000.png: the caption is missing"):
        read(tmp_path)
    (tmp_path / "l" / "00001.png").unlink()
    with pytest.raises(DataError, match=r"'00001' has no partner in .*l "):
        read(tmp_path)


def test_captions_that_differ_belong_to_their_images(tmp_path: Path) -> None:
    write(OWN, tmp_path, "folder_wl")
    assert read(tmp_path)[0].prompts == ("a cat", "a dog")
    assert read(tmp_path)[1].prompts is None


@pytest.mark.parametrize(
    ("row", "values"),
    [
        ({"prefer_0": True, "prefer_1": False}, (1, 0)),
        ({"prefer_0": False, "prefer_1": False}, (0.5, 0.5)),
        ({"label_0": 0}, (0, 1)),
        ({"label_0": 0.5, "label_1": 0.5}, (0.5, 0.5)),
        ({"probability_0": 0.25}, (0.25, 0.75)),
    ],
)
def test_ways_to_say_which_is_better(tmp_path: Path, row: dict[str, Any], values: tuple[float, ...]) -> None:
    row = {"image_0": "a.png", "image_1": "b.png", "prompt": "p", **row}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    assert read(tmp_path)[0].values == values


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image_0": "a", "image_1": "b", "label_0": 1}, "prompt is None"),
        ({"image_0": "a", "image_1": "b", "prompt": "p"}, "label_0 is None"),
        ({"image_0": "a", "image_1": "b", "prompt": "p", "label_0": 2}, "label_0 is 2"),
        ({"image_0": "a", "prompt": "p", "label_0": 1}, "image is None"),
        ({"image_0": "a", "image_1": "b", "prompt": "p", "prefer_0": True, "prefer_1": True}, "must add up"),
        ({"image_0": "a", "image_1": "b", "prompt": "p", "probability_0": 1.2}, r"in \[0, 1\]"),
        ({"image": "a", "prompt": "p", "label": 0.3}, "label is 0.3"),
        ({"images": ["a", "b"], "prompt": "p", "scores": "high"}, "scores is 'high'"),
        ({"images": ["a", "b"], "prompt": "p", "scores": [1]}, "2 images but 1 values"),
        ({"prompt": "p"}, "no image"),
        ({"images": None, "prompt": "p", "scores": [1, 2]}, "images is None.*list of image paths"),
        ({"images": "ab", "prompt": "p", "scores": [1, 2]}, "images is 'ab'"),
        ({"images": ["a", "b"], "prompt": "p", "scores": [True, False]}, r"scores is \[True"),
        ({"image_0": "a", "image_1": "b", "prompt": "p", "probability_0": True}, "probability_0 is True"),
        ({"image": "a", "prompt": "p", "label": 1, "prompts": [1]}, r"prompts is \[1\].*list with a text"),
        ({"image": "a", "prompt": "p", "label": 1, "prompts": "hey"}, "prompts is 'hey'"),
        ({"image": "a", "prompt": "p", "label": 1, "models": "sd"}, "models is 'sd'"),
        ([1], "JSON object"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, row: object, message: str) -> None:
    (tmp_path / "metadata.jsonl").write_text("\n" + json.dumps(row))
    with pytest.raises(DataError, match=message) as error:
        read(tmp_path)
    assert "metadata.jsonl line 2" in str(error.value)


def test_images_nobody_judged_are_unknown_likes_by_prompt(tmp_path: Path) -> None:
    for name, prompt in (("a", "one"), ("b", "two"), ("c", "one")):
        (tmp_path / f"{name}.png").write_bytes(picture(ord(name)).read())
        (tmp_path / f"{name}.txt").write_text(f"{prompt}\n")
    found = read(tmp_path)
    assert detect(tmp_path) == "images"
    assert [(r.prompt, r.kind, r.values) for r in found] == [
        ("one", "labels", (0.5, 0.5)),
        ("two", "labels", (0.5,)),
    ]
    assert found[0].models == (tmp_path.name,) * 2
    lines = [json.dumps({"file_name": f"{n}.png", "prompt": "p"}) for n in "ab"]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    assert [len(r.images) for r in read(tmp_path, "images")] == [2]
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "b.txt").unlink()
    with pytest.raises(DataError, match=r"b.png: the caption is missing"):
        read(tmp_path)


def test_null_is_as_good_as_nothing(tmp_path: Path) -> None:
    row = {"image": "a", "prompt": "p", "label": 1, "models": None, "prompts": None, "rater": None}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    (record,) = read(tmp_path)
    assert (record.models, record.prompts, record.rater) == ((), None, None)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.jsonl", '{"image": "a", "prompt": "caf\xe9", "label": 1}'),
        ("train.json", '[{"prompt": "caf\xe9"}]'),
        ("votes.csv", "prompt,image1,image2,votes_image1,votes_image2\ncaf\xe9,a,b,1,2"),
        ("l/x.txt", "caf\xe9"),
    ],
)
def test_text_that_is_not_utf8_is_named(tmp_path: Path, name: str, text: str) -> None:
    for side in ("w", "l") if name == "l/x.txt" else ():
        (tmp_path / side).mkdir()
        (tmp_path / side / "x.png").touch()
    (tmp_path / name).write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=rf"{name} is not UTF-8.*save it as UTF-8"):
        read(tmp_path if "." not in name.partition("/")[0] else tmp_path / name)


@pytest.mark.parametrize("keep", [0, 100])
@pytest.mark.parametrize("format", ["auto", "pickapic", "votes"])
def test_a_parquet_file_that_is_not_whole_is_named(pickapic: Path, keep: int, format: str) -> None:
    pickapic.write_bytes(pickapic.read_bytes()[:keep])
    with pytest.raises(DataError, match=rf"{pickapic.name} is no whole parquet file"):
        read(pickapic, format)


def test_broken_json_lines_are_named(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text('{"image": ')
    with pytest.raises(DataError, match="line 1: not valid JSON"):
        read(tmp_path)


# ---------------------------------------------------------------------- writers


@pytest.mark.parametrize(
    ("format", "records", "message"),
    [
        ("parquet", PAIRS, "no writer"),
        ("folder", [], "no records"),
        ("pickapic", SOFT, "is soft"),
        ("pickapic", RANKED, "the records are ranking"),
        ("pickapic", OWN, "own captions"),
        ("hpdv2", [*PAIRS, *RANKED], "one kind per file"),
        ("folder_wl", PAIRS, "no ties"),
    ],
)
def test_writers_refuse_what_their_format_cannot_hold(
    tmp_path: Path, format: str, records: list[Record], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        write(records, tmp_path / "x", format)


def test_a_vote_table_needs_a_known_suffix(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\.jsonl, \.csv or \.parquet"):
        write(SOFT, tmp_path / "v.txt", "votes")
