"""webdataset shards: the samples people have, what the library itself writes, and what is refused."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from diffalign.data import DataError, TarImage, read, write
from diffalign.data.readers import detect
from tests.data.data_helpers import pair, picture

A, B, C = (picture(i).read() for i in (1, 2, 3))


def shard(path: Path, *samples: dict[str, bytes | str], name: str = "s") -> Path:
    with tarfile.open(path, "w") as tar:
        for i, sample in enumerate(samples):
            for extension, value in sample.items():
                data = value.encode() if isinstance(value, str) else value
                info = tarfile.TarInfo(f"{name}{i}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize(
    ("sample", "kind", "values"),
    [
        ({"jpg_0": A, "jpg_1": B, "label_0": "0", "caption": "12"}, "pair", (0, 1)),
        ({"jpg_0": A, "jpg_1": B, "label_0": "0.5", "label_1": "0.5", "caption": "12"}, "pair", (0.5, 0.5)),
        ({"1.png": B, "0.png": A, "json": '{"label_0": 1, "caption": "12"}'}, "pair", (1, 0)),
        ({"image_0.jpg": A, "image_1.jpg": B, "label_0.txt": "1", "txt": "12"}, "pair", (1, 0)),
        ({"0.jpg": A, "1.jpg": B, "json": '{"probability_0": 0.25}', "txt": "12"}, "pair", (0.25, 0.75)),
        ({"jpg": A, "cls": "1", "txt": "12"}, "labels", (1,)),
        ({"0.jpg": A, "1.jpg": B, "2.jpg": C, "json": '{"scores": [3, 1, 2]}', "txt": "12"}, "ranking", (3, 1, 2)),  # noqa: E501
    ],
)  # fmt: skip
def test_ways_to_write_a_sample(
    tmp_path: Path, sample: dict[str, Any], kind: str, values: tuple[float, ...]
) -> None:
    path = shard(tmp_path / "x.tar", sample)
    assert detect(path) == detect(tmp_path) == "webdataset"
    (record,) = read(path)
    assert (record.kind, record.values, record.prompt) == (kind, values, "12")
    assert [image.read() for image in record.images] == [A, B, C][: len(values)]
    assert isinstance(record.images[0], TarImage)
    assert str(path) in record.images[0].where


def test_shards_come_in_order_and_unlabelled_samples_are_left_out(tmp_path: Path) -> None:
    sample = {"jpg_0": A, "jpg_1": B, "label_0": "1"}
    shard(tmp_path / "p-1.tar", {**sample, "caption": "three"})
    shard(
        tmp_path / "p-0.tar", {**sample, "caption": "one"}, {**sample, "caption": "2", "has_label": "false"}
    )
    assert [r.prompt for r in read(tmp_path)] == ["one", "three"]
    assert [r.prompt for r in read(tmp_path / "p-*.tar")] == ["one", "three"]


def test_all_fields_of_the_json_are_read(tmp_path: Path) -> None:
    row = {"caption": "x", "label_0": 1, "user_id": 7, "model_0": "a", "model_1": "b", "margin": 0.5}
    row |= {"prompts": ["w", "l"], "judged": {"s": [1, 2]}, "regions": [{"rectangle": [0, 0, 1, 0.5]}, None]}
    (record,) = read(shard(tmp_path / "x.tar", {"0.jpg": A, "1.jpg": B, "json": json.dumps(row)}))
    assert (record.rater, record.models, record.margin) == ("7", ("a", "b"), 0.5)
    assert (record.prompts, record.judged) == (("w", "l"), {"s": (1, 2)})
    assert record.regions is not None
    assert record.regions[1] is None


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"jpg_0": A, "jpg_1": B, "label_0": "1"}, "s0: prompt is None"),
        ({"jpg_0": A, "jpg_1": B, "caption": "x"}, "s0: label_0 is None"),
        ({"jpg_0": A, "jpg_1": B, "caption": "x", "label_0": "0.7"}, "label_0 is 0.7"),
        ({"jpg_0": A, "jpg_2": B, "caption": "x", "label_0": "1"}, "images are jpg_0, jpg_2; they"),
        ({"caption": "x", "label_0": "1"}, "images are missing"),
        ({"jpg": A, "png": B, "caption": "x"}, "images are jpg, png"),
        ({"0.jpg": A, "1.jpg": B, "2.jpg": C, "caption": "x"}, "3 images and no scores"),
        ({"0.jpg": A, "1.jpg": B, "json": "[1]"}, "json must be an object"),
        ({"0.jpg": A, "1.jpg": B, "json": "{"}, "json is not valid"),
        ({"0.jpg": A, "1.jpg": B, "caption": b"caf\xe9", "label_0": "1"}, "prompt is not UTF-8"),
        ({"0.jpg": A, "1.jpg": B, "txt": "", "json": '{"label_0": 1, "regions": [{"mask": "m.png"}, null]}'},
         "where there are no paths"),
    ],
)  # fmt: skip
def test_bad_samples_are_named(tmp_path: Path, sample: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        read(shard(tmp_path / "x.tar", sample))
    assert "x.tar sample s0" in str(error.value)


def test_files_that_are_no_shards_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(DataError, match=r"x.tar is no whole, uncompressed tar"):
        read(tmp_path / "x.tar")
    sample = {"jpg_0": A, "jpg_1": B, "label_0": "1", "caption": "x"}
    whole = shard(tmp_path / "x.tar", sample).read_bytes()
    (tmp_path / "x.tar").write_bytes(whole[:700])
    with pytest.raises((DataError, OSError), match=r"x.tar"):
        read(tmp_path)[0].images[0].read()
    shard(tmp_path / "x.tar", {**sample, "JPG_0": A})
    with pytest.raises(DataError, match="an extension is there twice"):
        read(tmp_path)


def test_the_library_and_the_reader_agree(tmp_path: Path) -> None:
    import webdataset

    with webdataset.TarWriter(str(tmp_path / "x.tar")) as tar:
        tar.write({"__key__": "a", "0.jpg": A, "1.jpg": B, "json": {"prompt": "p", "label_0": 1}})
    (record,) = read(tmp_path)
    assert [image.read() for image in record.images] == [A, B]
    write([pair(0), pair(1, 0.0)], tmp_path / "ours", "webdataset")
    shards = str(tmp_path / "ours" / "pairs-000000.tar")
    samples = list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False))
    assert [json.loads(s["json"])["label_0"] for s in samples] == [1, 0]
    assert samples[1]["0.png"] == pair(1).images[0].read()
