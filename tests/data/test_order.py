"""Easiest first, likes with their share, and other captions: in the functions and in the stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from diffalign.data import CachedSet, DataError, Loader, LoaderOptions, Record
from diffalign.data.order import class_balanced, easiest_first
from tests.data.data_helpers import FakeEncoder, digest, pair, picture

Build = Callable[..., CachedSet]
LIKES = [
    Record(prompt=f"p{i}", images=(picture(i),), kind="labels", values=(float(i < 3),)) for i in range(12)
]
GRADED = [pair(i, 0.5 + i / 20) for i in range(1, 11)]


def stream(data: CachedSet, encoder: FakeEncoder, world: int = 1, rank: int = 0, **options: Any) -> Loader:
    return Loader(
        data, encoder.collate_prompts, LoaderOptions(**{"batch": 4, **options}), rank=rank, world=world
    )


def test_easiest_first_goes_down_by_stages() -> None:
    gaps = np.random.default_rng(0).permutation(20).astype(float)
    order, repeats = easiest_first(gaps.tolist(), 4, np.random.default_rng(1))
    assert sorted(order.tolist()) == list(range(20))
    assert not repeats.any()
    stages = gaps[order].reshape(4, 5)
    assert (stages[:-1].min(1) > stages[1:].max(1)).all()
    assert any((np.diff(stage) > 0).any() for stage in stages)  # shuffled within
    exact, _ = easiest_first(gaps.tolist(), 20, np.random.default_rng(1))
    assert (np.diff(gaps[exact]) < 0).all()


def test_likes_have_their_share_and_come_in_rounds() -> None:
    liked = [True] * 10 + [False] * 90
    order, repeats = class_balanced(liked, 0.8, 4000, np.random.default_rng(0))
    likes = order < 10
    assert 0.78 < likes.mean() < 0.82
    counts = np.bincount(order[likes], minlength=10)
    assert counts.max() - counts.min() <= 1
    seen: dict[int, int] = {}
    for unit, repeat in zip(order.tolist(), repeats.tolist(), strict=True):
        assert repeat == seen.get(unit, 0)
        seen[unit] = repeat + 1
    assert (class_balanced(liked, 1.0, 50, np.random.default_rng(0))[0] < 10).all()
    with pytest.raises(DataError, match=r"liked_share is 0.8, but there is no like among 3"):
        class_balanced([False] * 3, 0.8, 3, np.random.default_rng(0))


def test_the_first_epoch_is_a_curriculum(cached: Build, encoder: FakeEncoder) -> None:
    source = stream(cached(GRADED), encoder, batch=5, curriculum=2)
    samples = [set(b.sample.tolist()) for b in islice(source, 4)]
    assert samples[0] == {5, 6, 7, 8, 9}
    assert samples[1] == {0, 1, 2, 3, 4}
    assert samples[2] != samples[0]


def test_drawn_likes_are_the_same_for_any_number_of_processes_and_resume(
    cached: Build, encoder: FakeEncoder
) -> None:
    data = cached(LIKES)
    alone = list(islice(stream(data, encoder, liked_share=0.8), 30))
    roles = torch.cat([b.role for b in alone])
    assert 0.7 < (roles == 1).float().mean() < 0.9
    places = [(int(s), int(e)) for b in alone for s, e in zip(b.sample, b.epoch, strict=True)]
    assert len(set(places)) == len(places)  # no noise is drawn twice
    parts = [list(islice(stream(data, encoder, 2, r, liked_share=0.8), 30)) for r in range(2)]
    for whole, a, b in zip(alone, *parts, strict=True):
        assert torch.equal(torch.cat([a.sample, b.sample]), whole.sample)
    source = stream(data, encoder, liked_share=0.8)
    next(iter(source))
    state = source.state_dict()
    other = stream(data, encoder, liked_share=0.8)
    other.load_state_dict(state)
    assert torch.equal(next(iter(other)).sample, alone[1].sample)
    with pytest.raises(DataError, match=r"drawn with liked_share 0.8, this run's is shuffled"):
        stream(data, encoder).load_state_dict(state)


def test_other_captions_are_of_the_next_prompt_whoever_asks(cached: Build, encoder: FakeEncoder) -> None:
    data = cached([replace(r, prompt=f"prompt number {i // 4}") for i, r in enumerate(LIKES)])
    alone = list(islice(stream(data, encoder, other_captions=True), 6))
    for batch in alone:
        assert batch.other_cond is not None
        own, other = batch.cond["pooled"].flatten(), batch.other_cond["pooled"].flatten()
        assert (own != other).all()
        assert (other != digest("")).all()
    stop = alone[0].to("meta").other_cond
    assert stop is not None
    assert stop["pooled"].device.type == "meta"
    pooled = torch.cat([b.other_cond["pooled"] for b in alone if b.other_cond])
    halves = list(islice(stream(data, encoder, batch=2, other_captions=True), 12))
    assert torch.equal(torch.cat([b.other_cond["pooled"] for b in halves if b.other_cond]), pooled)
    # neighbours of different prompts: the next row's caption, as in rolling a batch by one
    flat = torch.cat([b.cond["pooled"] for b in alone]).flatten()
    rolled = flat[:-1] != flat[1:]
    assert torch.equal(pooled.flatten()[:-1][rolled], flat[1:][rolled])


def test_other_captions_of_a_pair_are_one(cached: Build, encoder: FakeEncoder) -> None:
    batch = next(iter(stream(cached(GRADED), encoder, other_captions=True, prompt_dropout=1.0)))
    assert batch.other_cond is not None
    other = batch.other_cond["pooled"].flatten()
    assert torch.equal(other[::2], other[1::2])
    assert (other != digest("")).all()


def test_margins_scores_soft_labels_and_weights_reach_the_rows(cached: Build, encoder: FakeEncoder) -> None:
    full = replace(pair(0, 0.0), margin=0.5, weight=3.0, soft=(0.2, 0.8), score=(1.0, 2.0))
    data = cached([full, replace(pair(1), score=(5.0, 4.0))])
    batch = next(iter(stream(data, encoder, batch=2)))
    mine = batch.sample == 0
    assert batch.margin is not None
    assert batch.soft is not None
    assert batch.score is not None
    assert batch.margin[mine].tolist() == [0.5, 0.5]
    assert batch.soft[mine].tolist() == pytest.approx([0.8, 0.2])  # the second image won
    assert batch.score[mine].tolist() == [2, 1]
    assert batch.weight[mine].tolist() == [3, 3]
    assert batch.margin[~mine].tolist() == [0, 0]
    assert batch.soft[~mine].tolist() == [1, 0]
    plain = next(iter(stream(cached([pair(1)]), encoder, batch=1)))
    assert (plain.margin, plain.score, plain.region, plain.other_cond) == (None, None, None, None)


@pytest.mark.parametrize(
    "field", [{"margin": 1.0}, {"weight": 2.0}, {"soft": (0.6, 0.4)}, {"score": (1.0, 0.0)}]
)
def test_a_state_of_other_labels_is_refused(
    cached: Build, encoder: FakeEncoder, field: dict[str, Any]
) -> None:
    state = stream(cached([pair(0)]), encoder, batch=1).state_dict()
    with pytest.raises(DataError, match="the data of the checkpoint"):
        stream(cached([replace(pair(0), **field)]), encoder, batch=1).load_state_dict(state)


@pytest.mark.parametrize(
    ("records", "options", "message"),
    [
        (GRADED, {"liked_share": 0.8}, "for likes and dislikes, and the data hold pairs"),
        (LIKES[3:], {"liked_share": 0.8}, "there is no like among 9"),
        (LIKES, {"liked_share": 1.8}, "liked_share is 1.8"),
        (LIKES, {"liked_share": 0.8, "curriculum": 2}, "set one of them"),
        ([pair(0), pair(1)], {"curriculum": 2}, "all comparisons have the same one"),
        (GRADED, {"curriculum": -1}, "curriculum is -1"),
        ([pair(0, prompt="x"), pair(1, prompt="x")], {"other_captions": True}, "another caption"),
        ([replace(pair(0), score=(1.0, 2.0)), pair(1)], {}, "1 of 2 comparisons have no score"),
    ],
)
def test_data_that_an_option_cannot_use_are_refused(
    cached: Build, encoder: FakeEncoder, records: list[Record], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        stream(cached(records), encoder, **options)
