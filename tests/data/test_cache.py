"""The cache finds by content, never gives a stale answer, and skips and names what is broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffalign.data import (
    BytesImage,
    CachedSet,
    CacheOptions,
    DataError,
    FileImage,
    Record,
    Transform,
    build_cache,
)
from diffalign.data import read as read_records
from diffalign.data.store import Store
from diffalign.data.transform import View, decode
from tests.data.data_helpers import FakeEncoder, pair, picture

Build = Callable[..., CachedSet]
RECORDS = [pair(i, prompt=f"prompt {i % 2}") for i in range(4)]
BROKEN = BytesImage(picture(0).read()[:200], "broken.png")
EMPTY = BytesImage(b"", "empty.png")


def test_latents_are_those_of_the_encoder(cached: Build, encoder: FakeEncoder) -> None:
    data = cached(RECORDS)
    assert [unit.sample for unit in data.units] == [0, 1, 2, 3]
    image = decode(RECORDS[2].images[1].read(), "x")
    pixels, sizes = Transform(resolution=16).apply(image, View())
    mean, logvar = encoder.encode_images(pixels[None])
    found = data.latents.get(data.units[2].latents[0][1])
    assert torch.equal(found["mean"], mean[0])
    assert torch.equal(found["logvar"], logvar[0])
    assert torch.equal(found["sizes"], sizes)


def test_prompts_are_encoded_once_unpadded_and_with_the_empty_one(
    cached: Build, encoder: FakeEncoder
) -> None:
    data = cached([*RECORDS, replace(RECORDS[0], prompts=("own", "longer"))])
    assert sorted(encoder.prompts_seen) == ["", "longer", "own", "prompt 0", "prompt 1"]
    assert data.prompts.get(data.units[4].prompts[1])["text"].shape == (7, 2)
    assert data.prompts.get(data.empty_prompt)["text"].shape == (1, 2)


def test_equal_images_are_encoded_once_and_a_second_build_encodes_nothing(
    cached: Build, encoder: FakeEncoder
) -> None:
    crossed = Record(
        prompt="x", images=(RECORDS[0].images[0], RECORDS[1].images[1]), kind="pair", values=(1.0, 0.0)
    )
    first = cached([*RECORDS, crossed])
    assert (encoder.images_seen, first.report.encoded, first.report.found) == (8, 8, 2)
    encoder.prompts_seen.clear()
    second = cached([*RECORDS, crossed])
    assert (encoder.images_seen, second.report.encoded, second.report.found) == (8, 0, 10)
    assert encoder.prompts_seen == []
    assert second.units == first.units


def test_names_do_not_count_and_bytes_do(cached: Build, encoder: FakeEncoder, tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    file.write_bytes(picture(0).read())
    record = Record(prompt="", images=(FileImage(file), picture(1)), kind="pair", values=(1.0, 0.0))
    before = cached([record])
    file.write_bytes(picture(5).read())
    after = cached([record])
    assert encoder.images_seen == 3
    assert before.units[0].latents[0][0] != after.units[0].latents[0][0]


@pytest.mark.parametrize(
    ("other", "images", "prompts"),
    [
        ({"vae": "another"}, 8, 0),
        ({"text": "another"}, 0, 3),
        ({"resolution": 8}, 8, 0),
        ({"random_crop": True}, 8, 0),
        ({"flip": True}, 8, 0),  # the plain half is found, the mirrored half is new
        ({"dtype": "bfloat16"}, 8, 3),
        ({}, 0, 0),
    ],
)
def test_another_encoder_transform_or_storage_is_a_miss_never_a_hit(
    tmp_path: Path, other: dict[str, object], images: int, prompts: int
) -> None:
    build_cache(RECORDS, FakeEncoder(), tmp_path, transform=Transform(resolution=16))
    encoder = FakeEncoder(vae=str(other.get("vae", "vae")), text=str(other.get("text", "text")))
    transform = Transform(
        resolution=8 if "resolution" in other else 16,
        random_crop="random_crop" in other,
        flip="flip" in other,
    )
    options = CacheOptions(dtype="bfloat16" if "dtype" in other else "float32")
    data = build_cache(RECORDS, encoder, tmp_path, transform=transform, options=options)
    assert (encoder.images_seen, len(encoder.prompts_seen)) == (images, prompts)
    assert data.latents.get(data.units[0].latents[0][0])["mean"].dtype == getattr(torch, options.dtype)


def test_both_images_of_a_pair_get_the_same_crop_and_flip(cached: Build) -> None:
    wide = [
        Record(
            prompt="", images=(picture(i, (16, 64)), picture(i + 1, (16, 64))), kind="pair", values=(1.0, 0.0)
        )
        for i in range(0, 20, 2)
    ]
    data = cached(wide, random_crop=True, flip=True)
    lefts = []
    for unit in data.units:
        assert len(unit.latents) == 2
        for view in unit.latents:
            sizes = [data.latents.get(key)["sizes"] for key in view]
            assert torch.equal(sizes[0], sizes[1])
            lefts.append(int(sizes[0][3]))
    assert len(set(lefts)) > 5


# ---------------------------------------------------------------------- bad input


def test_a_path_that_no_system_takes_is_an_unreadable_image(tmp_path: Path, encoder: FakeEncoder) -> None:
    odd = replace(RECORDS[0], images=(FileImage(tmp_path / "a\0b.png"), RECORDS[0].images[1]))
    options = CacheOptions(max_bad_share=0.5)
    data = build_cache(
        [odd, RECORDS[1]], encoder, tmp_path / "c", transform=Transform(resolution=16), options=options
    )
    assert [reason for _, reason in data.report.bad] == ["cannot be read (embedded null byte)"]


def test_unreadable_images_are_skipped_counted_and_listed(tmp_path: Path, encoder: FakeEncoder) -> None:
    missing = FileImage(tmp_path / "gone.png")
    spoilt = [
        replace(RECORDS[i], images=(RECORDS[i].images[0], bad))
        for i, bad in enumerate((BROKEN, EMPTY, missing))
    ]
    data = build_cache(
        [*spoilt, *RECORDS],
        encoder,
        tmp_path / "c",
        transform=Transform(resolution=16),
        options=CacheOptions(max_bad_share=0.3),
    )
    assert [unit.sample for unit in data.units] == [3, 4, 5, 6]
    assert [where for where, _ in data.report.bad] == ["broken.png", "empty.png", str(tmp_path / "gone.png")]
    assert data.report.bad[1][1] == "zero bytes"
    assert "3 images unreadable" in data.report.summary()
    assert data.report.images == 14


def test_too_many_unreadable_images_stop_the_build_but_keep_its_work(tmp_path: Path) -> None:
    spoilt = replace(RECORDS[3], images=(RECORDS[3].images[0], EMPTY))
    options = CacheOptions(batch=2, max_bad_share=0.1)
    with pytest.raises(
        DataError, match=r"1 of 8 images cannot be read.*max_bad_share=0.1 .*empty.png: zero bytes.*repair"
    ):
        build_cache(
            [*RECORDS[:3], spoilt],
            FakeEncoder(),
            tmp_path,
            transform=Transform(resolution=16),
            options=options,
        )
    again = FakeEncoder()
    build_cache(RECORDS[:3], again, tmp_path, transform=Transform(resolution=16), options=options)
    assert again.images_seen == 0


def test_pairs_of_equal_images_are_skipped_and_listed(cached: Build) -> None:
    twin = replace(RECORDS[0], images=(picture(3), picture(3)), source="pairs.parquet row 7")
    data = cached([RECORDS[1], twin, RECORDS[2]])
    assert [unit.sample for unit in data.units] == [0, 2]
    assert data.report.equal == ["pairs.parquet row 7"]
    with pytest.raises(DataError, match=r"every pair are the same bytes.*pairs.parquet row 7"):
        cached([twin, twin])


def test_empty_and_mixed_data_sets_are_refused(cached: Build) -> None:
    with pytest.raises(DataError, match="data set is empty"):
        cached([])
    like = Record(prompt="", images=(picture(0),), kind="labels", values=(1.0,))
    with pytest.raises(DataError, match="mixes labels and pair"):
        cached([RECORDS[0], like])


def test_nothing_left_is_an_empty_data_set(tmp_path: Path, encoder: FakeEncoder) -> None:
    spoilt = [replace(RECORDS[0], images=(EMPTY, BROKEN))]
    with pytest.raises(DataError, match="data set is empty"):
        build_cache(
            spoilt,
            encoder,
            tmp_path,
            transform=Transform(resolution=16),
            options=CacheOptions(max_bad_share=1.0),
        )


class Overflowing(FakeEncoder):
    """Gives NaN for bright pictures, as a VAE in fp16 may."""

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = super().encode_images(pixels)
        return mean.masked_fill((pixels > 0.999).flatten(1).all(1)[:, None, None, None], float("nan")), logvar


def test_nan_latents_name_the_image(tmp_path: Path) -> None:
    import numpy as np

    white = BytesImage.from_array(np.full((16, 16, 3), 255, np.uint8), "white.png")
    record = replace(RECORDS[2], images=(RECORDS[2].images[0], white))
    with pytest.raises(DataError, match=r"white.png: its latent holds NaN or Inf; run the VAE in fp32"):
        build_cache([*RECORDS[:2], record], Overflowing(), tmp_path, transform=Transform(resolution=16))
    # The whole batch is dropped: no half-checked latent is found by the next run.
    assert len(Store(tmp_path / "latents")) <= 5
    store = Store(tmp_path / "latents")
    assert all(store.get(key)["mean"].isfinite().all() for key in store)


def test_infinite_embeddings_name_the_prompt(tmp_path: Path) -> None:
    encoder = FakeEncoder()
    encoder.encode_prompts = lambda prompts: [{"text": torch.tensor([float("inf")])} for _ in prompts]  # type: ignore[method-assign]
    with pytest.raises(DataError, match="prompt '': its embedding"):
        build_cache(RECORDS, encoder, tmp_path, transform=Transform(resolution=16))


# ---------------------------------------------------------------------- kinds, progress, files


def test_labels_with_several_images_are_comparisons_of_their_own(cached: Build) -> None:
    record = Record(
        prompt="x",
        images=(picture(0), picture(1), EMPTY),
        kind="labels",
        values=(1.0, 0.5, 0.0),
        prompts=("a", "b", "c"),
    )
    many = [Record(prompt="", images=(picture(i),), kind="labels", values=(0.0,)) for i in range(2, 120)]
    data = cached([record, *many])
    assert [(u.sample, u.values, u.undecided) for u in data.units[:3]] == [
        (0, (1.0,), False),
        (0, (0.5,), True),
        (1, (0.0,), False),
    ]
    assert data.units[0].prompts != data.units[1].prompts


def test_progress_counts_every_image_and_prompt(tmp_path: Path, encoder: FakeEncoder) -> None:
    seen: dict[str, list[tuple[int, int]]] = {"images": [], "prompts": []}
    build_cache(
        RECORDS,
        encoder,
        tmp_path,
        transform=Transform(resolution=16),
        progress=lambda what, done, total: seen[what].append((done, total)),
    )
    assert seen["images"] == [(2, 8), (4, 8), (6, 8), (8, 8)]
    assert seen["prompts"][-1] == (3, 3)


def test_records_from_a_parquet_file_are_cached_like_those_in_memory(
    cached: Build, encoder: FakeEncoder, tmp_path: Path
) -> None:
    from diffalign.data import write

    write(RECORDS, tmp_path / "p.parquet", "pickapic")
    assert cached(read_records(tmp_path / "p.parquet")).units == cached(RECORDS).units
    assert encoder.images_seen == 8


def test_store_shards_survive_reopening_and_half_written_ones_do_not_count(tmp_path: Path) -> None:
    store = Store(tmp_path, shard_bytes=40)
    for i in range(10):
        store.add(f"{i:02x}", {"a": torch.full((8,), float(i)), "b": torch.tensor([i])})
        store.add(f"{i:02x}", {"a": torch.zeros(8)})  # what is there stays
    assert len(list(tmp_path.glob("*.safetensors"))) == 10
    again = Store(tmp_path)
    assert len(again) == 10
    assert torch.equal(again.get("07")["a"], torch.full((8,), 7.0))
    assert again.get("07")["b"].dtype == torch.int64
    shard = sorted(tmp_path.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-4])
    sorted(tmp_path.glob("*.json"))[1].write_text("{")
    (tmp_path / "x.json").write_text(json.dumps({"format": 99}))
    assert len(Store(tmp_path)) == 8
    with pytest.raises(KeyError):
        again.get("ff")


def test_a_failed_write_leaves_neither_shard_nor_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    store.add("aa", {"a": torch.zeros(2)})
    store.flush()
    store.add("bb", {"a": torch.zeros(2)})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        with pytest.raises(OSError, match="No space left"):
            store.flush()
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".safetensors"]
    store.flush()
    assert "bb" in Store(tmp_path)


def test_a_shard_that_rots_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add("aa", {"a": torch.zeros(2)})
    store.flush()
    shard = next(tmp_path.glob("*.safetensors"))
    shard.write_bytes(b"\xff" * shard.stat().st_size)
    with pytest.raises(DataError, match=r"safetensors cannot be read .*delete it"):
        Store(tmp_path).get("aa")
