"""RPO: by hand on two pairs, its limits, and what it declares."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from diffalign.objectives import Denoised, build
from tests.objectives.rows import random_rows


def batch_of(features: list[list[float]], **fields: torch.Tensor) -> Denoised:
    """Pairs in golden order; the prompts' features are given once for each pair."""
    found = torch.tensor(features, dtype=torch.float64).repeat(2, 1)
    return replace(random_rows(len(features), **fields), extra={"prompt_features": found})


def test_value_by_hand() -> None:
    batch = batch_of([[1.0, 0.0], [3.0, 4.0]])  # cosine 0.6
    assert batch.ref_error is not None
    a = (batch.error - batch.ref_error).tolist()
    far = math.exp(-0.4 / 0.2)  # distance 1 - 0.6 at temperature 0.2

    def l(i: int, j: int) -> float:  # noqa: E743
        return math.log1p(math.exp(50 * (a[i] - a[2 + j])))

    expected = [(l(0, 0) + far * l(0, 1)) / (1 + far), (l(1, 1) + far * l(1, 0)) / (1 + far)]
    loss, metrics = build("rpo", beta=100.0, temperature=0.2).loss(batch)
    assert loss.tolist() == pytest.approx(expected)
    assert metrics["own_weight"].tolist() == pytest.approx([1 / (1 + far)] * 2)


def test_cold_it_is_dpo() -> None:
    batch = batch_of([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    torch.testing.assert_close(
        build("rpo", temperature=1e-3).loss(batch)[0], build("dpo").loss(batch)[0], rtol=1e-9, atol=0
    )


def test_equal_prompts_share_their_losers() -> None:
    weight = build("rpo").loss(batch_of([[1.0, 2.0]] * 4))[1]["own_weight"]
    assert weight.tolist() == pytest.approx([0.25] * 4)


def test_soft_labels_of_both_pairs_count() -> None:
    soft = torch.tensor([0.5, 1.0, 0.5, 0.0], dtype=torch.float64)
    batch = batch_of([[1.0, 0.0], [1.0, 0.0]], soft=soft)
    assert batch.ref_error is not None
    a = (batch.error - batch.ref_error).tolist()

    def term(i: int, j: int, p: float) -> float:
        z = -50 * (a[i] - a[2 + j])
        return p * math.log1p(math.exp(-z)) + (1 - p) * math.log1p(math.exp(z))

    expected = [0.5 * (term(0, 0, 0.5) + term(0, 1, 0.75)), 0.5 * (term(1, 1, 1.0) + term(1, 0, 0.75))]
    assert build("rpo", beta=100.0).loss(batch)[0].tolist() == pytest.approx(expected)


def test_order_of_rows_does_not_matter() -> None:
    batch = batch_of([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    order = torch.tensor([5, 0, 2, 1, 3, 4])
    assert batch.ref_error is not None
    moved = replace(
        batch,
        error=batch.error[order],
        ref_error=batch.ref_error[order],
        group=batch.group[order],
        role=batch.role[order],
        extra={"prompt_features": batch.extra["prompt_features"][order]},
    )
    torch.testing.assert_close(build("rpo").loss(moved)[0], build("rpo").loss(batch)[0])


def test_what_it_needs_is_declared_and_missed() -> None:
    assert build("rpo").needs == {"prompt_features"}
    assert build("rpo").coupled
    with pytest.raises(ValueError, match="rpo needs extra\\['prompt_features'\\]"):
        build("rpo").loss(random_rows(1))
    with pytest.raises(ValueError, match="temperature is 0; it must be above 0"):
        build("rpo", temperature=0)
