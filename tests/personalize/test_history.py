"""Support and query share nothing; who disagrees is found whichever side came first."""

from __future__ import annotations

import numpy as np
import pytest

from diffalign.data.records import BytesImage, DataError, Record
from diffalign.personalize.history import Histories, chunks


def record(rater: str | None, prompt: str, first: str, second: str, value: float = 1.0) -> Record:
    images = tuple(BytesImage(b"", where) for where in (first, second))
    return Record(prompt=prompt, images=images, kind="pair", values=(value, 1 - value), rater=rater)


RECORDS = [
    record("anna", "a cat", "a", "b"),
    record("anna", "A  cat ", "c", "d"),
    record("anna", "a dog", "b", "e"),
    record("anna", "a cow", "f", "g"),
    record("anna", "a hen", "h", "i", 0.5),
    record("ben", "a cat", "b", "a"),
    record("carla", "a cat", "b", "a", 0.0),
    record(None, "a cat", "a", "b"),
]


def test_support_shares_no_prompt_and_no_image_with_the_query() -> None:
    found = Histories(RECORDS)
    assert found.people == ["anna", "ben", "carla"]
    assert found.of["anna"] == [0, 1, 2, 3]
    rng = np.random.default_rng(0)
    assert found.support("anna", 8, rng, [0]) == [3]  # 1 has the prompt, 2 an image
    assert sorted(found.support("anna", 8, rng)) == [0, 1, 2, 3]
    assert len(found.support("anna", 2, rng)) == 2
    draws = {tuple(found.support("anna", 2, rng)) for _ in range(40)}
    assert len(draws) > 6
    with pytest.raises(DataError, match="'dora' has no decided pair; there are 3"):
        found.support("dora", 1, rng)


def test_opponents_chose_the_other_picture() -> None:
    found = Histories(RECORDS)
    assert found.opponents(0) == ["ben"]  # carla's 0 for b is a vote for a
    assert found.opponents(5) == ["anna", "carla"]
    assert found.opponents(3) == []
    assert found.opponents(7) == []


def test_images_by_their_digests() -> None:
    names = [("x", "y"), ("c", "d"), ("z", "x"), ("f", "x")] + [("1", "2")] * 4
    assert Histories(RECORDS, names).support("anna", 8, np.random.default_rng(0), [0]) == []
    with pytest.raises(DataError, match="one name for each image"):
        Histories(RECORDS, names[:3])
    with pytest.raises(DataError, match="no record names who judged"):
        Histories(RECORDS[-1:])


def test_chunks_are_whole_and_apart() -> None:
    found = chunks(range(11), 4, np.random.default_rng(0))
    assert [len(c) for c in found] == [4, 4]
    assert len({i for c in found for i in c}) == 8
    with pytest.raises(ValueError, match="size is 0"):
        chunks([1], 0, np.random.default_rng(0))
