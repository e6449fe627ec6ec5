"""Batches: order of rows, roles, ties, processes, resume, dropout, weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from diffalign.data import Batch, CachedSet, DataError, Loader, LoaderOptions, Record
from tests.data.data_helpers import FakeEncoder, digest, pair, picture

Build = Callable[..., CachedSet]
RECORDS = [pair(i, p) for i, p in enumerate((1.0, 0.0, 0.5, 0.3, 0.8, 1.0, 0.5, 0.0, 1.0, 0.0, 1.0))]
FIELDS = ("mean", "logvar", "group", "role", "soft", "weight", "sizes", "sample")


def loader(data: CachedSet, encoder: FakeEncoder, rank: int = 0, world: int = 1, **options: object) -> Loader:
    return Loader(
        data,
        encoder.collate_prompts,
        LoaderOptions(
            **{"batch": 4, **options}  # type: ignore[arg-type]
        ),
        rank=rank,
        world=world,
    )


def take(source: Loader, steps: int) -> list[Batch]:
    return list(islice(source, steps))


def samples(batches: list[Batch]) -> list[int]:
    return [int(s) for b in batches for s in b.sample[::2]]


def same(one: Batch, two: Batch) -> bool:
    plain = all(torch.equal(getattr(one, name), getattr(two, name)) for name in FIELDS)
    return plain and all(torch.equal(one.cond[name], two.cond[name]) for name in one.cond)


def test_rows_are_winner_then_loser_with_their_own_latents(cached: Build, encoder: FakeEncoder) -> None:
    data = cached(RECORDS)
    batch = next(iter(loader(data, encoder, batch=11, ties="keep")))
    assert batch.mean.shape == (22, 3, 4, 4)
    assert batch.sizes.shape == (22, 6)
    assert batch.group.tolist() == [g for g in range(11) for _ in (0, 1)]
    assert batch.soft is not None
    assert batch.score is None
    for row in range(0, 22, 2):
        record, unit = RECORDS[batch.sample[row]], data.units[batch.sample[row]]
        winner = 0 if record.values[0] >= record.values[1] else 1
        for offset, image in ((0, winner), (1, 1 - winner)):
            assert torch.equal(batch.mean[row + offset], data.latents.get(unit.latents[0][image])["mean"])
            assert batch.soft[row + offset] == pytest.approx(record.values[image])
            assert batch.cond["pooled"][row + offset] == digest(record.prompt)
        assert batch.role[row : row + 2].tolist() == ([0, 0] if record.undecided else [1, -1])


@pytest.mark.parametrize(
    ("ties", "count", "roles"), [("keep", 11, [0, 0]), ("drop", 9, None), ("soft", 11, [1, -1])]
)
def test_ties_are_kept_dropped_or_soft(
    cached: Build, encoder: FakeEncoder, ties: str, count: int, roles: list[int] | None
) -> None:
    source = loader(cached(RECORDS), encoder, batch=count, ties=ties)
    batch = next(iter(source))
    assert len(source.units) == count
    assert sorted(set(batch.sample.tolist())) == [i for i in range(11) if ties != "drop" or i not in (2, 6)]
    tied = (batch.sample == 6).nonzero().flatten()
    assert roles is None or batch.role[tied].tolist() == roles
    assert roles is None or (batch.soft is not None and batch.soft[tied].tolist() == [0.5, 0.5])


def test_only_ties_are_refused_when_they_are_dropped(cached: Build, encoder: FakeEncoder) -> None:
    data = cached([RECORDS[2], RECORDS[6]])
    with pytest.raises(DataError, match="all 2 comparisons are ties"):
        loader(data, encoder)


def test_every_epoch_has_every_pair_once_in_another_order(cached: Build, encoder: FakeEncoder) -> None:
    source = loader(cached(RECORDS), encoder, batch=3)
    epochs = [samples(take(source, 3)) for _ in range(3)]
    assert source.epoch == 3
    assert all(sorted(epoch) == [0, 1, 3, 4, 5, 7, 8, 9, 10] for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3
    other = loader(cached(RECORDS), encoder, batch=3, seed=1)
    assert samples(take(other, 3)) != epochs[0]


@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("flip", [False, True])
def test_the_parts_of_all_processes_are_the_batch_of_one(
    cached: Build, encoder: FakeEncoder, world: int, flip: bool
) -> None:
    data = cached(RECORDS, flip=flip)
    options: dict[str, Any] = {"prompt_dropout": 0.4, "ties": "keep"}
    alone = take(loader(data, encoder, **options), 7)
    parts = [take(loader(data, encoder, rank=r, world=world, **options), 7) for r in range(world)]
    for step, whole in enumerate(alone):
        shares = [part[step] for part in parts]
        for name in ("mean", "logvar", "role", "soft", "weight", "sizes", "sample"):
            assert torch.equal(torch.cat([getattr(s, name) for s in shares]), getattr(whole, name))
        assert torch.equal(torch.cat([s.cond["pooled"] for s in shares]), whole.cond["pooled"])
        assert all(s.group.tolist() == [g for g in range(len(s.group) // 2) for _ in (0, 1)] for s in shares)


def test_half_the_batch_in_twice_the_steps_is_the_same_stream(cached: Build, encoder: FakeEncoder) -> None:
    data = cached(RECORDS)
    whole = take(loader(data, encoder, batch=4, prompt_dropout=0.5), 5)
    halves = take(loader(data, encoder, batch=2, prompt_dropout=0.5), 10)
    assert samples(whole) == samples(halves)
    assert torch.equal(
        torch.cat([b.cond["pooled"] for b in whole]), torch.cat([b.cond["pooled"] for b in halves])
    )


@pytest.mark.parametrize("stop", [1, 3, 6])
def test_resume_continues_with_the_very_next_unit(cached: Build, encoder: FakeEncoder, stop: int) -> None:
    data = cached(RECORDS, flip=True)
    options: dict[str, Any] = {"prompt_dropout": 0.3, "seed": 5}
    expected = take(loader(data, encoder, **options), 8)
    first = loader(data, encoder, **options)
    for _, _batch in zip(range(stop), first, strict=False):
        state = first.state_dict()  # taken while the batch is worked on
    second = loader(cached(RECORDS, flip=True), encoder, **options)
    second.load_state_dict(state)
    rest = take(second, 8 - stop)
    assert all(same(a, b) for a, b in zip(rest, expected[stop:], strict=True))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"seed": 1}, "seed"),
        ({"ties": "keep"}, "data"),
        ({"records": RECORDS[:-1]}, "data"),
        ({"flip": True}, "data"),
    ],
)
def test_a_state_of_other_data_is_refused(
    cached: Build, encoder: FakeEncoder, change: dict[str, Any], name: str
) -> None:
    state = loader(cached(RECORDS), encoder).state_dict()
    data = cached(change.pop("records", RECORDS), flip=change.pop("flip", False))
    with pytest.raises(DataError, match=f"cannot resume: the {name} of the checkpoint"):
        loader(data, encoder, **change).load_state_dict(state)


def test_prompt_dropout_has_its_share_and_one_draw_per_pair(cached: Build, encoder: FakeEncoder) -> None:
    batches = take(loader(cached(RECORDS), encoder, batch=9, prompt_dropout=0.2), 60)
    empty = torch.cat([b.cond["pooled"].flatten() == digest("") for b in batches])
    assert torch.equal(empty[::2], empty[1::2])
    assert 0.14 < empty.float().mean() < 0.26
    always = next(iter(loader(cached(RECORDS), encoder, prompt_dropout=1.0)))
    assert (always.cond["pooled"] == digest("")).all()


def test_mirrored_views_come_for_both_images_about_half_the_time(cached: Build, encoder: FakeEncoder) -> None:
    data = cached(RECORDS, flip=True)
    mirrored = {key for unit in data.units for key in unit.latents[1]}
    lookup = {
        data.latents.get(k)["mean"].numpy().tobytes(): k in mirrored
        for u in data.units
        for v in u.latents
        for k in v
    }
    rows = torch.tensor(
        [lookup[m.numpy().tobytes()] for b in take(loader(data, encoder, batch=9), 40) for m in b.mean]
    )
    assert torch.equal(rows[::2], rows[1::2])
    assert 0.4 < rows.float().mean() < 0.6


def test_own_captions_follow_their_images(cached: Build, encoder: FakeEncoder) -> None:
    record = replace(RECORDS[1], prompts=("loser", "winner"))
    batch = next(iter(loader(cached([record]), encoder, batch=1)))
    assert batch.cond["pooled"].flatten().tolist() == [digest("winner"), digest("loser")]


def test_labels_and_rankings(cached: Build, encoder: FakeEncoder) -> None:
    likes = [Record(prompt="x", images=tuple(map(picture, range(3))), kind="labels", values=(1.0, 0.0, 0.5))]
    batch = next(iter(loader(cached(likes), encoder, batch=3, ties="keep")))
    assert sorted(batch.role.tolist()) == [-1, 0, 1]
    assert batch.group.tolist() == [0, 1, 2]
    assert batch.soft is None
    assert len(loader(cached(likes), encoder).units) == 2
    ranked = [
        Record(prompt="x", images=tuple(map(picture, range(3))), kind="ranking", values=(-2.0, -1.0, -3.0))
    ]
    batch = next(iter(loader(cached(ranked), encoder, batch=1)))
    assert batch.role.tolist() == [-1, 1, -1]
    assert batch.score is not None
    assert batch.score.tolist() == [-2, -1, -3]
    assert batch.group.tolist() == [0, 0, 0]


def test_weights_belong_to_records(cached: Build, encoder: FakeEncoder) -> None:
    data = cached(RECORDS)
    source = Loader(
        data, encoder.collate_prompts, LoaderOptions(batch=9), weights=[float(i) for i in range(11)]
    )
    batch = next(iter(source))
    assert torch.equal(batch.weight, batch.sample.float())
    with pytest.raises(DataError, match="3 weights for 11 records"):
        Loader(data, encoder.collate_prompts, weights=[1.0] * 3)
    with pytest.raises(DataError, match="negative or not finite"):
        Loader(data, encoder.collate_prompts, weights=[float("nan")] * 11)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch is 0"),
        ({"prompt_dropout": 1.5}, "prompt_dropout is 1.5"),
        ({"ties": "kept"}, "ties is 'kept'"),
        ({"batch": 2, "rank": 1, "world": 3}, "cannot be shared by process 1 of 3"),
    ],
)
def test_wrong_options_are_refused(
    cached: Build, encoder: FakeEncoder, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        loader(cached(RECORDS), encoder, **options)


def test_stored_in_half_precision_given_in_single(
    cached: Build, encoder: FakeEncoder, tmp_path: Path
) -> None:
    from diffalign.data import CacheOptions, Transform, build_cache

    data = build_cache(
        RECORDS, encoder, tmp_path, transform=Transform(resolution=16), options=CacheOptions(dtype="bfloat16")
    )
    batch = next(iter(loader(data, encoder)))
    assert batch.mean.dtype == batch.cond["text"].dtype == torch.float32


def test_a_batch_moves_with_all_it_has(cached: Build, encoder: FakeEncoder) -> None:
    batch = next(iter(loader(cached(RECORDS), encoder))).to("meta")
    tensors = [
        value for value in (*vars(batch).values(), *batch.cond.values()) if isinstance(value, torch.Tensor)
    ]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert batch.score is None
