"""Dropout and swaps by unit, and losses of tokens by hand."""

from __future__ import annotations

import math

import pytest
import torch

from diffalign.personalize.training import dispersion, info_nce, keep_users, other_rows


def test_both_sides_of_a_pair_are_dropped_together() -> None:
    units = [u for u in range(2000) for _ in range(2)]
    kept = keep_users(units, 0.1)
    assert torch.equal(kept[::2], kept[1::2])
    assert float(kept.float().mean()) == pytest.approx(0.9, abs=0.02)
    assert torch.equal(kept[10:20], keep_users(units[10:20], 0.1))
    assert keep_users(units, 0.0).all()
    assert not keep_users(units, 1.0).any()
    with pytest.raises(ValueError, match=r"user dropout is 2; it must be in \[0, 1\]"):
        keep_users(units, 2)


def test_the_other_is_somebody_else() -> None:
    people = ["anna", "anna", "ben", "ben", "anna", "anna", "carla", "carla"]
    places, found = other_rows(people, [1, 1, 2, 2, 3, 3, 4, 4])
    assert found.all()
    assert all(people[p] != people[i] for i, p in enumerate(places.tolist()))
    assert torch.equal(places[::2], places[1::2])
    drawn = {int(other_rows(people, [u] * 8)[0][0]) for u in range(30)}
    assert {people[d] for d in drawn} == {"ben", "carla"}
    alone, found = other_rows(["anna", "anna"], [1, 1])
    assert alone.tolist() == [0, 1]
    assert not found.any()


def test_info_nce_by_hand() -> None:
    tokens = torch.eye(2)[:, None]  # two people at right angles
    found = info_nce(tokens, tokens, ["a", "b"], temperature=1.0)
    assert float(found) == pytest.approx(math.log(1 + math.exp(-1)))
    assert float(info_nce(tokens, tokens.flip(0), ["a", "b"], 1.0)) == pytest.approx(math.log(1 + math.e))
    assert float(info_nce(tokens, tokens.flip(0), ["a", "a"], 1.0)) == pytest.approx(0.0, abs=1e-6)


def test_dispersion_by_hand() -> None:
    tokens = torch.tensor([[[0.0]], [[2.0]]])
    assert float(dispersion(tokens)) == pytest.approx(-4.0)
    assert float(dispersion(torch.zeros(3, 2, 2))) == pytest.approx(0.0)
    three = torch.tensor([[[0.0]], [[0.0]], [[2.0]]])
    assert float(dispersion(three)) == pytest.approx(math.log((2 + 4 * math.exp(-4)) / 6))
