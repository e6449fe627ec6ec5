"""DPO by hand: known values, ties, soft labels, order of rows, and that the reference gets no gradient."""

from __future__ import annotations

import math

import pytest
import torch

from diffalign.objectives import Denoised, build, names
from diffalign.objectives.beta import canonical_beta, sum_beta


def pairs(error: list[float], ref: list[float], role: list[int], soft: list[float] | None = None) -> Denoised:
    n = len(error) // 2
    return Denoised(
        error=torch.tensor(error, dtype=torch.float64, requires_grad=True),
        ref_error=torch.tensor(ref, dtype=torch.float64),
        group=torch.arange(n).repeat_interleave(2),
        role=torch.tensor(role),
        t=torch.zeros(2 * n),
        soft=None if soft is None else torch.tensor(soft, dtype=torch.float64),
    )


def test_value_by_hand() -> None:
    batch = pairs([0.10, 0.13], [0.11, 0.12], [1, -1])  # gaps -0.01 and +0.01: z = -(100/2)(-0.02) = 1
    loss, metrics = build("dpo", beta=100.0).loss(batch)
    assert loss.tolist() == pytest.approx([math.log1p(math.exp(-1.0))])
    assert metrics["margin"].tolist() == pytest.approx([1.0])
    assert metrics["win_gap"].tolist() == pytest.approx([-0.01])
    assert metrics["lose_gap"].tolist() == pytest.approx([0.01])
    assert metrics["accuracy"].tolist() == [1.0]
    assert metrics["gradient_factor"].tolist() == pytest.approx([1 / (1 + math.e)])


def test_log_two_at_the_reference() -> None:
    loss, metrics = build("dpo", beta=5000.0).loss(pairs([0.1, 0.2], [0.1, 0.2], [1, -1]))
    assert loss.item() == pytest.approx(math.log(2), abs=1e-12)
    assert metrics["accuracy"].item() == 0.5


def test_swapping_sides_negates_the_logit() -> None:
    one = build("dpo").loss(pairs([0.10, 0.13], [0.11, 0.12], [1, -1]))[1]["margin"]
    other = build("dpo").loss(pairs([0.10, 0.13], [0.11, 0.12], [-1, 1]))[1]["margin"]
    torch.testing.assert_close(one, -other)


def test_a_constant_added_to_both_gaps_changes_nothing() -> None:
    one = build("dpo").loss(pairs([0.10, 0.13], [0.11, 0.12], [1, -1]))[0]
    other = build("dpo").loss(pairs([0.15, 0.18], [0.11, 0.12], [1, -1]))[0]
    torch.testing.assert_close(one, other)


def test_ties_pull_to_no_difference() -> None:
    batch = pairs([0.10, 0.13], [0.11, 0.12], [0, 0])
    loss = build("dpo", beta=100.0).loss(batch)[0]
    expected = 0.5 * math.log1p(math.exp(-1.0)) + 0.5 * math.log1p(math.exp(1.0))
    assert loss.tolist() == pytest.approx([expected])
    gradient = torch.autograd.grad(loss.sum(), batch.error)[0]
    assert gradient[0] < 0 < gradient[1], "a tie whose first side looks better must be pulled back"


def test_soft_labels_mix_both_directions() -> None:
    hard = build("dpo", beta=100.0).loss(pairs([0.10, 0.13], [0.11, 0.12], [1, -1]))[0]
    flipped = build("dpo", beta=100.0).loss(pairs([0.10, 0.13], [0.11, 0.12], [-1, 1]))[0]
    soft = build("dpo", beta=100.0).loss(pairs([0.10, 0.13], [0.11, 0.12], [1, -1], [0.8, 0.2]))[0]
    torch.testing.assert_close(soft, 0.8 * hard + 0.2 * flipped)


def test_order_of_rows_does_not_matter() -> None:
    torch.manual_seed(0)
    n = 6
    error, ref = torch.rand(2 * n), torch.rand(2 * n)
    group, role = torch.arange(n).repeat_interleave(2), torch.tensor([1, -1] * n)
    shuffle = torch.randperm(2 * n)
    rows = [
        Denoised(error=error[i], ref_error=ref[i], group=group[i], role=role[i], t=error)
        for i in (torch.arange(2 * n), shuffle)
    ]
    one, other = (build("dpo").loss(r)[0] for r in rows)
    torch.testing.assert_close(one, other)


def test_no_gradient_reaches_the_reference() -> None:
    batch = pairs([0.10, 0.13], [0.11, 0.12], [1, -1])
    assert batch.ref_error is not None
    loss = build("dpo").loss(batch)[0].sum()
    gradient = torch.autograd.grad(loss, batch.error)[0]
    assert gradient[0] > 0 > gradient[1], "the winner's error is pushed down, the loser's up"


@pytest.mark.parametrize("error", [0.0, 1e6])
def test_finite_at_extremes(error: float) -> None:
    batch = pairs([error, 0.0], [0.0, error], [1, -1])
    loss = build("dpo", beta=5000.0).loss(batch)[0].sum()
    assert torch.isfinite(loss)
    assert torch.isfinite(torch.autograd.grad(loss, batch.error)[0]).all()


def test_odd_rows_are_named() -> None:
    batch = pairs([0.1, 0.2], [0.1, 0.2], [1, -1])
    batch.error, batch.group, batch.role = batch.error[:1], batch.group[:1], batch.role[:1]
    with pytest.raises(ValueError, match="even number of rows"):
        build("dpo").loss(batch)


def test_conventions_name_the_same_beta() -> None:
    assert canonical_beta(2500, "diffusers_sd15") == canonical_beta(5000, "salesforce") == 5000
    assert canonical_beta(0.5, "paper_eq46", 16384) == 0.5 * 16384
    assert canonical_beta(0.5, "paper_sum", 16384) == 16384
    assert sum_beta(canonical_beta(0.31, "paper_eq46", 16384), 16384) == pytest.approx(0.31)
    with pytest.raises(ValueError, match="size is needed"):
        canonical_beta(0.5, "paper_sum")


def test_options_are_checked() -> None:
    with pytest.raises(TypeError, match=r"no option 'gamma'.*beta"):
        build("dpo", gamma=1.0)
    with pytest.raises(ValueError, match="above 0"):
        build("dpo", beta=-1.0)
    with pytest.raises(KeyError, match="dpo"):
        build("dpoo")
    assert {"dpo", "sft"} <= set(names())
