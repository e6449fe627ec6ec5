"""The formulas of the margin family by hand: values, minima, soft labels, margins, ranges."""

from __future__ import annotations

import math

import pytest
import torch

from diffalign.config import ConfigError, load
from diffalign.objectives import build, objectives
from diffalign.train.config import TrainConfig
from tests.objectives.small import pairs_of

FAMILY = (
    "dpo", "cdpo", "rdpo", "ipo", "hinge", "cpo", "simpo", "bco", "apo_zero", "sppo", "exo", "nca",
    "discopop", "aot",
)  # fmt: skip


def soft(p: float) -> torch.Tensor:
    return torch.tensor([p, 1 - p], dtype=torch.float64)


def value(name: str, u_w: float, u_l: float = 0.0, p: float | None = None, **options: object) -> float:
    given = {} if p is None else {"soft": soft(p)}
    loss, _ = build(name, beta=1.0, **options).loss(pairs_of([(u_w, u_l)], **given))
    return loss.item()


def ell(z: float) -> float:
    return math.log1p(math.exp(-z))


def sigma(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def divergence(p: float, q: float) -> float:
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


@pytest.mark.parametrize(
    ("name", "u_w", "u_l", "options", "wanted"),
    [
        ("cdpo", 1.0, 0.0, {"epsilon": 0.2}, 0.8 * ell(1) + 0.2 * ell(-1)),
        ("rdpo", 1.0, 0.0, {"epsilon": 0.2}, (0.8 * ell(1) - 0.2 * ell(-1)) / 0.6),
        ("ipo", 2.0, 0.0, {}, 1.5**2),
        ("hinge", 0.25, 0.0, {}, 0.75),
        ("hinge", 1.5, 0.0, {}, 0.0),
        ("nca", 1.0, -2.0, {}, ell(1) + 0.5 * ell(-1) + 0.5 * ell(2)),
        ("bco", 1.0, -2.0, {"shift": "none"}, ell(1) + ell(2)),
        ("bco", 1.0, -2.0, {}, ell(1.5) + ell(1.5)),  # the shift is -1/2
        ("apo_zero", 1.0, -2.0, {}, 1 - sigma(1) + sigma(-2)),
        ("apo_zero", 1.0, -2.0, {"anchor": "down"}, sigma(1) + 1 - sigma(3)),
        ("sppo", 1.0, -2.0, {}, 0.5**2 + 1.5**2),
        ("exo", 1.0, 0.0, {"epsilon": 0.1}, divergence(sigma(1), 0.9)),
        ("discopop", 0.1, 0.0, {}, ell(0.1) * (1 - sigma(2)) + math.exp(-0.1) * sigma(2)),
        ("simpo", 0.4, -0.3, {"gamma": 0.5}, ell(0.7 - 0.5)),
        ("cpo", 0.4, -0.3, {"sft_weight": 2.0}, ell(0.7) + 2 * (0.5 - 2 * 0.4)),
    ],
)
def test_values(name: str, u_w: float, u_l: float, options: dict[str, object], wanted: float) -> None:
    assert value(name, u_w, u_l, **options) == pytest.approx(wanted, rel=1e-12)


def test_cdpo_and_exo_end_at_the_smoothed_label() -> None:
    end = math.log(0.9 / 0.1)
    for name in ("cdpo", "exo"):
        batch = pairs_of([(end, 0.0)])
        loss = build(name, beta=1.0, epsilon=0.1).loss(batch)[0].sum()
        assert torch.autograd.grad(loss, batch.error)[0].abs().max() < 1e-12
    assert value("exo", end, epsilon=0.1) == pytest.approx(0.0, abs=1e-12)


def test_rdpo_on_flipped_labels_is_dpo_on_true_ones_in_the_mean() -> None:
    right, flipped = value("rdpo", 0.7, epsilon=0.3), value("rdpo", 0.0, 0.7, epsilon=0.3)
    assert 0.7 * right + 0.3 * flipped == pytest.approx(value("dpo", 0.7), rel=1e-12)


def test_rdpo_has_no_floor() -> None:
    assert value("rdpo", 1e4, epsilon=0.1) == pytest.approx(-1e3 / 0.8, rel=1e-9)


@pytest.mark.parametrize("name", FAMILY)
def test_soft_labels_mix_both_directions(name: str) -> None:
    """A tie is indifferent to the sides; EXO measures the distance to the mixed label instead."""
    options = {"shift": "none"} if name == "bco" else {}
    right, wrong = value(name, 0.4, -0.3, **options), value(name, -0.3, 0.4, **options)
    if name != "exo":
        assert value(name, 0.4, -0.3, p=0.8, **options) == pytest.approx(0.8 * right + 0.2 * wrong, rel=1e-12)
    assert value(name, 0.4, -0.3, p=1.0, **options) == pytest.approx(right, rel=1e-12)
    tie = value(name, 0.4, -0.3, p=0.5, **options)
    assert value(name, -0.3, 0.4, p=0.5, **options) == pytest.approx(tie, rel=1e-12)


def test_exo_on_a_soft_label() -> None:
    end = math.log(0.8 / 0.2)  # q = 0.8 at p = 0.875, epsilon = 0.1
    assert value("exo", end, p=0.875, epsilon=0.1) == pytest.approx(0.0, abs=1e-12)
    assert value("exo", 0.0, p=0.5, epsilon=0.1) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("name", FAMILY)
def test_a_margin_is_taken_off_the_lead(name: str) -> None:
    """Asking for m is the same as leading by m less; of both sides' scores each gives half."""
    margin = torch.full((2,), 0.2, dtype=torch.float64)
    asked, metrics = build(name, beta=1.0).loss(pairs_of([(0.4, -0.3)], margin=margin))
    less = build(name, beta=1.0).loss(pairs_of([(0.3, -0.2)]))[0]
    if name == "cpo":  # its second term is of the error itself
        asked, less = (x - 0.5 + 2 * u for x, u in ((asked, 0.4), (less, 0.3)))
    torch.testing.assert_close(asked, less)
    assert metrics["margin"].item() == pytest.approx(0.7), "what is shown is the lead"


def test_without_a_reference_none_is_looked_at() -> None:
    for name in ("cpo", "simpo"):
        objective = build(name, beta=1.0)
        batch = pairs_of([(0.4, -0.3)])
        one = objective.loss(batch)[0]
        batch.ref_error = torch.tensor([0.1, 0.9], dtype=torch.float64)
        torch.testing.assert_close(objective.loss(batch)[0], one)


def test_time_weights_multiply_the_gaps() -> None:
    weight = torch.full((2,), 2.0, dtype=torch.float64)
    for name in FAMILY:
        if name not in ("cpo", "simpo"):  # of which the reference's share is weighted too
            one = build(name, beta=2.0).loss(pairs_of([(0.4, -0.3)], beta=2.0))[0]
            other = build(name, beta=1.0).loss(pairs_of([(0.4, -0.3)], beta=2.0, t_weight=weight))[0]
            torch.testing.assert_close(one, other)


def test_aot_compares_ranks() -> None:
    """Winners 3, 1 and losers 2, 0: sorted, 1 meets 0 and 3 meets 2, whoever their partners are."""
    loss, metrics = build("aot", beta=1.0).loss(pairs_of([(3.0, 0.0), (1.0, 2.0)]))
    assert loss.tolist() == pytest.approx([ell(1), ell(1)])
    assert metrics["margin"].tolist() == pytest.approx([3.0, -1.0])
    loss = build("aot", beta=1.0, epsilon=0.1).loss(pairs_of([(1.0, 2.0), (5.0, 0.0)]))[0]
    assert loss.tolist() == pytest.approx([0.9 * ell(1) + 0.1 * ell(-1), 0.9 * ell(3) + 0.1 * ell(-3)])


def test_aot_gives_a_loss_to_the_pair_whose_winner_has_the_rank() -> None:
    """Winners 5, 3, 4 are third, first and second; the losers in order are -1, 0, 2."""
    loss = build("aot", beta=1.0).loss(pairs_of([(5.0, 0.0), (3.0, 2.0), (4.0, -1.0)]))[0]
    assert loss.tolist() == pytest.approx([ell(5 - 2), ell(3 + 1), ell(4 - 0)])


def test_aot_leaves_pairs_of_weight_0_out_of_the_ranks() -> None:
    """They stand in for pairs that a process does not have; a copy between the others must move no rank."""
    own, filler = [(5.0, 0.0), (3.0, 2.0), (4.0, -1.0)], (4.5, -2.0)
    objective = build("aot", beta=1.0)
    padded = pairs_of([filler, *own])
    padded.weight = torch.tensor([0.0, 0.0, *[1.0] * 6], dtype=torch.float64)
    alone, loss = objective.loss(pairs_of(own))[0], objective.loss(padded)[0]
    assert loss[1:].tolist() == pytest.approx(alone.tolist())
    assert bool(loss.isfinite().all())


def test_aot_against_the_reference() -> None:
    """Policy leads 1 and 5 against the reference's 2 and 0: errors (w, l), beta / 2 = 1."""
    batch = pairs_of([(0.0, 0.0), (0.0, 0.0)])
    batch.error = torch.tensor([0.0, 1.0, 0.0, 5.0], dtype=torch.float64)
    batch.ref_error = torch.tensor([0.0, 2.0, 0.0, 0.0], dtype=torch.float64)
    loss = build("aot", beta=2.0, compare="reference").loss(batch)[0]
    assert loss.tolist() == pytest.approx([ell(1 - 0), ell(5 - 2)])


@pytest.mark.parametrize(
    ("name", "option", "wrong", "limit"),
    [
        ("cdpo", "epsilon", 0.7, r"\[0, 0\.5\)"),
        ("cdpo", "epsilon", 0.5, r"\[0, 0\.5\)"),
        ("rdpo", "epsilon", 0.5, r"\[0, 0\.5\)"),
        ("cpo", "epsilon", -0.1, r"\[0, 0\.5\)"),
        ("aot", "epsilon", 0.5, r"\[0, 0\.5\)"),
        ("exo", "epsilon", 0.0, r"\(0, 0\.5\)"),
        ("cpo", "sft_weight", -1.0, "at least 0"),
        ("simpo", "gamma", -1.0, "at least 0"),
        ("discopop", "tau", 1.0, r"\(0, 1\)"),
        ("bco", "decay", 1.0, r"\[0, 1\)"),
        ("ipo", "beta", 0.0, "above 0"),
        ("hinge", "beta", math.inf, "finite"),
    ],
)
def test_ranges(name: str, option: str, wrong: float, limit: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name}\.{option} is {wrong}; it must be .*{limit}"):
        build(name, **{option: wrong})


def test_a_recipe_names_the_fault() -> None:
    recipe = {"policy": {"model": "x"}, "objective": {"name": "cdpo", "epsilon": 0.7}, "data": {"path": "y"}}
    with pytest.raises(ConfigError, match=r"objective: cdpo\.epsilon is 0\.7; it must be in \[0, 0\.5\)"):
        load(TrainConfig, recipe, unions={"objective": objectives.get})
