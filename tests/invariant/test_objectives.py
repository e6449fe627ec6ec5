"""What holds for every registered objective, whoever wrote it.

A new objective is found by itself. Where one departs from a rule by its nature, it is named in a list below,
with the reason; everything else is a fault.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields, replace
from itertools import product
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from diffalign.config import dump, load
from diffalign.objectives import Objective, build, names, objectives
from diffalign.objectives.base import DataKind, name_of
from diffalign.options import help_of, hints_of
from tests.invariant.batches import (
    ROWS,
    SHAPE,
    every,
    exchanged,
    label,
    made,
    make_batch,
    take,
    unknown_needs,
)

LOG_2 = math.log(2)
AT_REFERENCE = {
    **dict.fromkeys(
        ("dpo", "cdpo", "rdpo", "aot", "smpo", "seppo", "rpo", "sdpo", "with_terms", "dense_reward"), LOG_2
    ),
    "plackett_luce": math.log(24),
    "bco": 2 * LOG_2,
    "nca": 2 * LOG_2,
    "discopop": 0.5 * LOG_2 + 0.5,
    "exo": -LOG_2 - 0.5 * math.log(0.001 * 0.999),
    "dmpo": -LOG_2 - 0.5 * math.log(0.01 * 0.99),
    "hinge": 1.0,
    "apo_zero": 1.0,
    "sppo": 0.5,
    "kto": 0.5,
    "ipo": 0.25,
    "pmpo": 0.0,
}
"""Loss by default options where policy and reference agree: log 2 for the logistic ones."""
NOT_CONSTANT = frozenset({"dspo", "rankdpo", "capo", "own_other"})
"""Of those with a reference: an error, a ranking's weights, a score or another person's error is part of the
loss itself."""

COUPLED = frozenset({"kto", "bco", "aot", "sdpo", "rpo"})
"""May mix the units of a batch, under their default options."""
COUPLED_BY_OPTION = frozenset({"dpo", "with_terms"})
"""May mix them under some option."""

ONE_SIDED = {"seppo": "its factor is taken from the anchor, which is another image after an exchange"}
"""Whose logit is not negated by an exchange of the two sides."""
NO_MARGIN = {
    "mapo": "the margin is of a bounded link, not of a logit",
    "rpo": "the logits are between different pairs",
    "seppo": "the other side may count as a winner",
}
"""Pair objectives that leave Denoised.margin aside."""
JUMPS = {"seppo": "the sign of the anchor's gap", "rankdpo": "the ranks of the model's own order"}
"""Whose loss is not continuous in the errors."""


def cases(chosen: Callable[[str, Objective], bool] = lambda name, objective: True) -> pytest.MarkDecorator:
    """Parametrise over name and options of the objectives for which ``chosen`` holds."""
    found = [(name, options) for name, options in every() if chosen(name, made(name, options))]
    return pytest.mark.parametrize(("name", "options"), found, ids=[label(*c) for c in found])


EACH = cases()
BY_NAME = pytest.mark.parametrize("name", names())
COMPARED = [n for n in names() if build(n).needs_reference and n not in NOT_CONSTANT]


def evaluated(objective: Objective, batch: Any) -> Tensor:
    return objective.loss(batch, lambda x: x, {})[0]


# ---------------------------------------------------------------------- what a class says about itself


@BY_NAME
def test_declarations(name):
    cls = objectives.get(name)
    assert cls.data in get_args(DataKind)
    assert cls.paper.startswith("https://")
    assert (cls.__doc__ or "").strip()
    assert "(" not in (cls.__doc__ or "").split(maxsplit=1)[0], (
        "the docstring is the dataclass's own signature"
    )
    assert unknown_needs(build(name)) == set(), "fill it in tests/invariant/batches.py"
    assert name_of(cls) == name


@BY_NAME
def test_every_option_is_documented(name):
    cls = objectives.get(name)
    assert {k: v for k, v in help_of(cls).items() if not v} == {}
    assert all(f.kw_only for f in fields(cls))


@dataclass(kw_only=True)
class Recipe:
    objective: Objective
    """As in a recipe."""


def others(cls: type[Any]) -> Iterator[dict[str, Any]]:
    """Each option alone at a value that is not its default."""
    for f in fields(cls):
        default = f.default if f.default is not MISSING else f.default_factory()
        kind = hints_of(cls)[f.name]
        for value in other_values(default, kind):
            yield {f.name: value}


def other_values(default: Any, kind: Any) -> list[Any]:
    if isinstance(default, bool):
        return [not default]
    if isinstance(default, int):
        return [max(1, default - 1)]
    if isinstance(default, float):
        return [default * 0.9 if default else 0.01]
    if isinstance(default, tuple):
        return [tuple(0.9 * x for x in default)]
    return [choice for choice in get_args(kind) if isinstance(choice, str) and choice != default]


@BY_NAME
def test_options_survive_yaml(name, tmp_path):
    cls = objectives.get(name)
    for options in [{}, *others(cls)]:
        objective = build(name, **options)
        path = tmp_path / "recipe.yaml"
        path.write_text(dump(Recipe(objective=objective), {"objective": name_of, "objective.pair": name_of}))
        unions = {"objective": objectives.get, "objective.pair": objectives.get}
        assert load(Recipe, path, unions=unions).objective == objective


@BY_NAME
def test_numbers_are_checked_and_named(name):
    cls = objectives.get(name)
    for f in fields(cls):
        for wrong in wrong_numbers(f.default, hints_of(cls)[f.name]):
            said = re.escape(f"{name}.{f.name} is {wrong}; it must be ")
            with pytest.raises(ValueError, match=rf"^{said}\S"):
                build(name, **{f.name: wrong})


def wrong_numbers(default: Any, kind: Any) -> list[Any]:
    """Values that no objective's option of this kind may have."""
    if isinstance(default, bool) or not {int, float} & {kind, *get_args(kind)}:
        return []
    wrong = [-1] if kind is int else [-1.0, math.nan, math.inf]
    return [(w,) * len(default) for w in wrong] if isinstance(default, tuple) else wrong


# ---------------------------------------------------------------------- what a loss is


@EACH
def test_one_loss_per_unit(name, options):
    objective = made(name, options)
    batch = make_batch(objective).batch
    loss, metrics = objective.loss(batch, lambda x: x, {})
    assert loss.shape == (6,)
    assert loss.dtype == torch.float64
    assert loss.requires_grad
    assert {k: v.shape for k, v in metrics.items()} == dict.fromkeys(metrics, (6,))
    assert [k for k, v in metrics.items() if v.requires_grad] == []
    weight = torch.arange(6.0, dtype=torch.float64).repeat_interleave(ROWS[objective.data])
    assert objective.units(batch, weight).tolist() == list(range(6))


@EACH
def test_no_gradient_reaches_the_reference(name, options):
    objective = made(name, options)
    one = make_batch(objective)
    evaluated(objective, one.batch).sum().backward()
    assert one.ref_pred.grad is None
    assert one.pred.grad is not None
    assert one.pred.grad.abs().max() > 0


@pytest.mark.parametrize("name", COMPARED)
def test_value_where_policy_and_reference_agree(name):
    objective = build(name)
    away = torch.linspace(0.1, 2.0, 6 * ROWS[objective.data], dtype=torch.float64)[:, None, None, None]
    away = away.expand(-1, *SHAPE)
    one = make_batch(objective, pred=away, ref_pred=away)
    assert name in AT_REFERENCE, "say what it is, or put it into NOT_CONSTANT"
    wanted = torch.full((6,), AT_REFERENCE[name], dtype=torch.float64)
    torch.testing.assert_close(evaluated(objective, one.batch), wanted)


@cases(lambda name, objective: objective.data == "pairs" and name not in ONE_SIDED)
def test_exchanging_the_sides_negates_the_logit(name, options):
    objective = made(name, options)
    batch = replace(make_batch(objective).batch, margin=None)
    one, other = (objective.loss(b, lambda x: x, {})[1]["margin"] for b in (batch, exchanged(batch)))
    assert one.abs().min() > 0
    torch.testing.assert_close(other, -one)


@cases(lambda name, objective: objective.data == "pairs" and name not in NO_MARGIN)
def test_a_margin_is_asked_of_a_pair(name, options):
    objective = made(name, options)
    batch = replace(make_batch(objective).batch, margin=None)
    margin = torch.full_like(batch.error, 0.3).detach()
    one, other = (evaluated(objective, b) for b in (batch, replace(batch, margin=margin)))
    assert (one != other).any()


@EACH
def test_order_of_the_rows_does_not_matter(name, options):
    objective = made(name, options)
    batch = make_batch(objective).batch
    shuffle = torch.randperm(len(batch.role), generator=torch.Generator().manual_seed(1))
    one, other = evaluated(objective, batch), evaluated(objective, take(batch, shuffle))
    torch.testing.assert_close(other, one[shuffle] if ROWS[objective.data] == 1 else one)


def test_only_the_listed_mix_units():
    assert {n for n in names() if build(n).coupled} <= COUPLED
    assert {n for n, options in every() if made(n, options).coupled} <= COUPLED | COUPLED_BY_OPTION


@cases(lambda name, objective: not objective.coupled)
def test_accumulation_equals_the_big_batch(name, options):
    objective = made(name, options)
    one = make_batch(objective)
    whole = evaluated(objective, one.batch)
    rows = torch.arange(len(one.batch.role)).chunk(3)
    parts = torch.cat([evaluated(objective, take(one.batch, r)) for r in rows])
    torch.testing.assert_close(parts, whole)
    (wanted,) = torch.autograd.grad(whole.mean(), one.pred, retain_graph=True)
    (found,) = torch.autograd.grad(parts.mean(), one.pred)
    torch.testing.assert_close(found, wanted)


# ---------------------------------------------------------------------- arithmetic


def far(size: float, objective: Objective) -> Tensor:
    """Predictions away from the target by ``size`` at every element."""
    return torch.full((2 * ROWS[objective.data], *SHAPE), size, dtype=torch.float64)


@EACH
def test_finite_at_extremes(name, options):
    """Errors of 0 and 1e6 on either side, of policy and reference, and all equal."""
    objective = made(name, options)
    first = torch.arange(2 * ROWS[objective.data]) % max(ROWS[objective.data], 2) == 0
    for winner, loser, ref_winner, ref_loser in product((0.0, 1e3), repeat=4):
        pred, ref_pred = (
            torch.where(first[:, None, None, None], far(a, objective), far(b, objective))
            for a, b in ((winner, loser), (ref_winner, ref_loser))
        )
        one = make_batch(objective, units=2, dtype=torch.float32, pred=pred, ref_pred=ref_pred)
        loss = evaluated(objective, one.batch)
        assert loss.isfinite().all()
        assert torch.autograd.grad(loss.sum(), one.pred)[0].isfinite().all()


@cases(lambda name, objective: name not in JUMPS)
def test_bf16_predictions_move_the_loss_as_its_gradient_says(name, options):
    """By at most 2^-9 |prediction| |gradient|, the largest gradient on the way: bf16 has 8 binary digits."""
    objective = made(name, options)
    start = make_batch(objective, dtype=torch.float32)
    pred, ref_pred, target = (x.detach() for x in (start.pred, start.ref_pred, start.target))
    losses, steepest = [], torch.zeros_like(pred)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        between = torch.lerp(pred, pred.bfloat16().float(), share)
        one = make_batch(objective, dtype=torch.float32, pred=between - target, ref_pred=ref_pred - target)
        loss = evaluated(objective, one.batch)
        steepest = steepest.maximum(torch.autograd.grad(loss.sum(), one.pred)[0].abs())
        losses.append(loss.detach().sum())
    assert losses[0].dtype == torch.float32
    assert (losses[-1] - losses[0]).abs() <= 1.05 * 2**-9 * (pred.abs() * steepest).sum() + 1e-4
