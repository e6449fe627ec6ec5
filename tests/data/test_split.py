"""Splits do not move, do not leak, and have about the share asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from diffalign.data import DataError, Record, split_by, split_records, split_select_report
from diffalign.data.split import fraction
from tests.data.data_helpers import pair


def records() -> list[Record]:
    one = pair(0)
    return [replace(one, prompt=f"prompt {i % 100}", rater=f"user {i % 37}") for i in range(800)]


@pytest.mark.parametrize("by", ["prompt", "rater"])
def test_no_key_is_on_both_sides_and_nothing_is_lost(by: str) -> None:
    train, held = split_records(records(), 0.3, by=by)  # type: ignore[arg-type]
    assert {getattr(r, by) for r in train}.isdisjoint({getattr(r, by) for r in held})
    assert len(train) + len(held) == 800
    assert 0.15 < len(held) / 800 < 0.45


def test_a_prompt_stays_where_it_is_whatever_comes_beside_it() -> None:
    _, held = split_records(records(), 0.3)
    _, some = split_records(records()[:150][::-1], 0.3)
    assert {r.prompt for r in some} == {r.prompt for r in held}
    _, more = split_records(records(), 0.5)
    assert {r.prompt for r in held} < {r.prompt for r in more}


def test_the_hash_is_the_same_on_every_machine() -> None:
    assert fraction("a red circle") == pytest.approx(FRACTION, abs=1e-15)


def test_seed_changes_the_split_and_case_does_not() -> None:
    assert split_records(records(), 0.3, seed=1)[1] != split_records(records(), 0.3, seed=2)[1]
    variants = [replace(pair(0), prompt=p) for p in ("A Red  circle", "a red circle ")]
    assert all(sum(map(bool, split_records(variants, 0.5, seed=s))) == 1 for s in range(20))


def test_select_and_report() -> None:
    prompts = [f"prompt {i}" for i in range(1000)]
    select, report = split_select_report(prompts)
    assert sorted(select + report) == sorted(prompts)
    assert 0.26 < len(select) / 1000 < 0.34


def test_wrong_use_is_refused() -> None:
    with pytest.raises(DataError, match=r"must be in \[0, 1\]"):
        split_by([1], str, 30)
    with pytest.raises(DataError, match="no rater is named"):
        split_records([pair(4)], by="rater")
    with pytest.raises(DataError, match="'user'"):
        split_records([pair(4)], by="user")  # type: ignore[arg-type]


FRACTION = 0.0546525373953106  # of sha256 of "0", a zero byte, and the prompt
