"""Own tokens against another's: the term by hand, its gradient, what a user-blind model gets."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from diffalign.objectives import Denoised, build
from tests.objectives.rows import random_rows


def by_hand(other: list[float], **extra: torch.Tensor) -> Denoised:
    """Two pairs; own errors say z = 1 and 0.5 at beta 10 with the reference, leads 2 and -1 without it."""
    error = torch.tensor([0.1, 0.5, 0.5, 0.3], dtype=torch.float64, requires_grad=True)
    given = torch.tensor(other, dtype=torch.float64, requires_grad=True)
    return Denoised(
        error=error,
        ref_error=torch.tensor([0.2, 0.4, 0.7, 0.4], dtype=torch.float64),
        group=torch.tensor([0, 0, 1, 1]),
        role=torch.tensor([1, -1, 1, -1]),
        t=torch.zeros(4),
        extra={"other_error": given, **extra},
    )


def test_the_term_by_hand() -> None:
    # other leads at beta 10: -(10 / 2)(0.4 - 0.2) = -1 and -(10 / 2)(0.2 - 0.4) = 1; own 2 and -1
    batch = by_hand([0.4, 0.2, 0.2, 0.4])
    options = {"pair": build("dpo", beta=10.0), "weight": 0.5, "beta": 10.0, "on": "all"}
    loss, metrics = build("own_other", **options).loss(batch)
    expected = [
        math.log1p(math.exp(-1.0)) + 0.5 * math.log1p(math.exp(-3.0)),
        math.log1p(math.exp(-0.5)) + 0.5 * math.log1p(math.exp(2.0)),
    ]
    torch.testing.assert_close(loss, torch.tensor(expected, dtype=torch.float64))
    assert metrics["own_minus_other"].tolist() == pytest.approx([3.0, -2.0])
    assert metrics["own_beats_other"].tolist() == [1.0, 0.0]
    own, other = torch.autograd.grad(loss.sum(), [batch.error, batch.extra["other_error"]])
    assert other.sign().tolist() == [-1.0, 1.0, -1.0, 1.0]  # the other's winner gets worse, its loser better
    assert own.sign().tolist() == [1.0, -1.0, 1.0, -1.0]


def test_only_pairs_on_which_they_disagree_are_contrasted() -> None:
    disagrees = torch.tensor([True, True, False, False])
    batch = by_hand([0.4, 0.2, 0.2, 0.4], other_disagrees=disagrees)
    objective = build("own_other", pair=build("dpo", beta=10.0), weight=0.5, beta=10.0)
    assert objective.needs == {"other_error", "other_disagrees"}
    plain = build("dpo", beta=10.0).loss(batch)[0]
    loss, _ = objective.loss(batch)
    torch.testing.assert_close(loss[1], plain[1], rtol=0, atol=0)
    torch.testing.assert_close(loss[0], plain[0] + 0.5 * math.log1p(math.exp(-3.0)))


def test_a_user_blind_model_gains_nothing_and_the_reference_leaves() -> None:
    batch = random_rows(3)
    blind = replace(batch, extra={"other_error": batch.error})
    objective = build("own_other", on="all", weight=1.0)
    loss, metrics = objective.loss(blind)
    torch.testing.assert_close(loss, build("dpo").loss(batch)[0] + math.log(2))
    assert metrics["own_minus_other"].tolist() == [0.0] * 3
    assert metrics["own_beats_other"].tolist() == [0.5] * 3
    moved = replace(blind, ref_error=blind.error.detach() * 2)
    torch.testing.assert_close(objective.loss(moved)[1]["own_minus_other"], metrics["own_minus_other"])


def test_weight_zero_measures_only() -> None:
    batch = random_rows(3)
    batch = replace(batch, extra={"other_error": batch.error.detach() + torch.arange(6)})
    objective = build("own_other", weight=0.0, pair=build("mapo"))
    assert objective.needs == {"other_error"}
    assert not objective.needs_reference
    loss, metrics = objective.loss(batch)
    torch.testing.assert_close(loss, build("mapo").loss(batch)[0], rtol=0, atol=0)
    # others' losers are 3 worse: other leads by 3 beta / 2 more than own
    torch.testing.assert_close(metrics["own_minus_other"], torch.full((3,), -3000.0, dtype=torch.float64))


def test_soft_labels_share_the_term() -> None:
    batch = by_hand([0.4, 0.2, 0.2, 0.4])
    batch = replace(batch, soft=torch.tensor([0.75, 0.25, 0.75, 0.25], dtype=torch.float64))
    term = build("own_other", on="all", beta=10.0).loss(batch)[1]["contrast_term"]
    expected = 0.75 * math.log1p(math.exp(-3.0)) + 0.25 * math.log1p(math.exp(3.0))
    assert float(term[0]) == pytest.approx(expected)


def test_what_is_missing_or_wrong_is_named() -> None:
    with pytest.raises(ValueError, match=r"own_other needs extra\['other_error'\]"):
        build("own_other").loss(random_rows(2))
    with pytest.raises(ValueError, match=r"own_other\.weight is -1; it must be at least 0"):
        build("own_other", weight=-1)
    with pytest.raises(ValueError, match="this one is on labels"):
        build("own_other", pair=build("kto"))
