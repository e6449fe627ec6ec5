"""What holds for every registered online objective, whoever wrote it."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from diffalign.config import dump, load
from diffalign.diffusion.spaces import native_error
from diffalign.objectives import Denoised, Predictions, names
from diffalign.objectives.steps import (
    OnlineObjective,
    Steps,
    build_online,
    online_name_of,
    online_names,
    online_objectives,
)
from diffalign.options import help_of, hints_of
from tests.invariant.test_objectives import others, wrong_numbers

NAMES = [
    "awm",
    "crd",
    "d3po",
    "ddpo",
    "dense_reward_pl",
    "dgpo",
    "dpok",
    "flow_dppo",
    "grpo",
    "grpo_guard",
    "lpo",
]
NAMES += ["nft", "online_pairs", "spo"]
PROMPTS, IMAGES, STEPS = 2, 2, 2
OWN = [name for name in NAMES if name != "online_pairs"]  # whose loss is that of the objective inside it
BY_NAME = pytest.mark.parametrize("name", OWN)


def test_the_registered_names() -> None:
    assert online_names() == NAMES
    assert not set(NAMES) & set(names()), "a recipe's name must say which of the two it is"


def steps_batch(seed: int = 0, dtype: torch.dtype = torch.float64, size: float = 3e-5) -> Steps:
    """Two prompts, two images, two steps each; ratios near 1."""
    draw = torch.Generator().manual_seed(seed)
    n = PROMPTS * IMAGES * STEPS

    def normal(scale: float) -> Tensor:
        return (scale * torch.randn(n, generator=draw, dtype=torch.float64)).to(dtype)

    return Steps(
        logp=(normal(size) - 1).requires_grad_(True), old_logp=normal(size) - 1, ref_logp=normal(size) - 1,
        advantage=normal(1.0).view(-1, STEPS)[:, :1].expand(-1, STEPS).flatten(),
        group=torch.arange(PROMPTS).repeat_interleave(IMAGES * STEPS),
        image=torch.arange(PROMPTS * IMAGES).repeat_interleave(STEPS), role=torch.zeros(n).long(),
        drift=normal(1e-3).square(), ref_drift=normal(1e-3).square(), pred_drift=normal(1e-2).square(),
        std=0.1 + normal(0.1).abs(), sqrt_dt=0.2 + normal(0.1).abs(),
        step=torch.arange(STEPS).repeat(n // STEPS),
    )  # fmt: skip


def rollout_batch(seed: int = 0, dtype: torch.dtype = torch.float64, size: float = 0.05) -> Denoised:
    draw = torch.Generator().manual_seed(seed)
    n = PROMPTS * 3

    def normal() -> Tensor:
        return torch.randn(n, 2, 3, 3, generator=draw, dtype=torch.float64).to(dtype)

    target, old = normal(), normal()
    pred = (old + size * normal()).requires_grad_(True)
    t = torch.linspace(0.1, 0.9, n).to(dtype)
    ref, ema = old + size * normal(), old + size * normal()
    return Denoised(
        error=native_error(pred, target), ref_error=native_error(ref, target), role=torch.zeros(n).long(),
        group=torch.arange(PROMPTS).repeat_interleave(3), t=t, score=normal()[:, 0, 0, 0],
        extra={"old_error": native_error(old, target), "ema_pred": ema, "x0_slope": t},
        tensors=Predictions(pred=pred, ref_pred=ref, target=target, x_t=target, x0=target, old_pred=old),
    )  # fmt: skip


def batch_for(objective: OnlineObjective[Any], **given: Any) -> Steps | Denoised:
    if objective.batch == "rollouts":
        return rollout_batch(**given)
    batch = steps_batch(**given)
    if objective.unit == "pair":
        return replace(batch, group=torch.arange(4).repeat_interleave(2), role=torch.tensor([1, -1] * 4))
    return batch


def leaf_of(batch: Steps | Denoised) -> Tensor:
    return batch.logp if isinstance(batch, Steps) else batch.tensors.pred


def take(batch: Steps | Denoised, rows: Tensor) -> Steps | Denoised:
    def pick(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[rows]
        if isinstance(value, Predictions):
            return Predictions(**{f.name: pick(getattr(value, f.name)) for f in fields(value)})
        return {k: pick(v) for k, v in value.items()} if isinstance(value, dict) else value

    return type(batch)(**{f.name: pick(getattr(batch, f.name)) for f in fields(batch)})


@BY_NAME
def test_declarations(name: str) -> None:
    cls = online_objectives.get(name)
    assert cls.paper.startswith("https://")
    assert cls.batch in ("steps", "rollouts")
    assert "(" not in cls.__doc__.split(maxsplit=1)[0], "the docstring is the dataclass's own signature"
    assert {k: v for k, v in help_of(cls).items() if not v} == {}
    assert all(f.kw_only for f in fields(cls))
    assert online_name_of(cls) == name
    objective = build_online(name)
    known = {f.name for f in fields(Steps if cls.batch == "steps" else Denoised)}
    known |= {"old_pred", "ref_pred"} | (
        {"old_error", "ema_pred", "x0_slope"} if cls.batch == "rollouts" else set()
    )
    assert objective.needs <= known


def test_wrong_options_are_named() -> None:
    with pytest.raises(TypeError, match=r"'grpo' has no option 'beta'; it takes clip, adv_max, kl, kl_scale"):
        build_online("grpo", beta=1.0)
    with pytest.raises(KeyError, match="did you mean 'grpo'"):
        build_online("grp0")


@dataclass(kw_only=True)
class Recipe:
    objective: OnlineObjective
    """As in a recipe."""


@BY_NAME
def test_options_survive_yaml(name: str, tmp_path: Any) -> None:
    for options in [{}, *others(online_objectives.get(name))]:
        objective = build_online(name, **options)
        path = tmp_path / "recipe.yaml"
        path.write_text(dump(Recipe(objective=objective), {"objective": online_name_of}))
        assert load(Recipe, path, unions={"objective": online_objectives.get}).objective == objective


@BY_NAME
def test_numbers_are_checked_and_named(name: str) -> None:
    cls = online_objectives.get(name)
    for f in fields(cls):
        for wrong in wrong_numbers(f.default, hints_of(cls)[f.name]):
            said = re.escape(f"{name}.{f.name} is {wrong}; it must be ")
            with pytest.raises(ValueError, match=rf"^{said}\S"):
                build_online(name, **{f.name: wrong})


@BY_NAME
def test_one_loss_per_unit(name: str) -> None:
    objective = build_online(name)
    batch = batch_for(objective)
    loss, metrics = objective.loss(batch)
    count = {"row": len(batch.group), "pair": len(batch.group) // 2, "group": PROMPTS}[objective.unit]
    assert loss.shape == (count,)
    assert loss.dtype == torch.float64
    assert {k: v.shape for k, v in metrics.items()} == dict.fromkeys(metrics, (count,))
    assert [k for k, v in metrics.items() if v.requires_grad] == []
    weight = batch.group.double() if objective.unit != "row" else torch.arange(count).double()
    assert objective.units(batch, weight).tolist() == list(range(count))
    (gradient,) = torch.autograd.grad(loss.sum(), leaf_of(batch))
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


@BY_NAME
def test_order_of_the_rows_does_not_matter(name: str) -> None:
    objective = build_online(name)
    batch = batch_for(objective)
    shuffle = torch.randperm(len(batch.group), generator=torch.Generator().manual_seed(1))
    one, other = objective.loss(batch)[0], objective.loss(take(batch, shuffle))[0]
    if objective.unit == "row":
        one = one[shuffle]
    torch.testing.assert_close(other.sort().values, one.sort().values)
    if objective.unit == "row":
        torch.testing.assert_close(other, one)


@BY_NAME
def test_prompts_do_not_mix(name: str) -> None:
    """Whole prompts in batches of their own give the same losses: so accumulation equals the big batch."""
    objective = build_online(name)
    batch = batch_for(objective)
    rows = torch.arange(len(batch.group)).chunk(PROMPTS)
    parts = torch.cat([objective.loss(take(batch, r))[0] for r in rows])
    torch.testing.assert_close(parts, objective.loss(batch)[0])
    if not objective.whole_groups and objective.unit == "row":
        singly = torch.cat(
            [objective.loss(take(batch, torch.tensor([i])))[0] for i in range(len(batch.group))]
        )
        torch.testing.assert_close(singly, objective.loss(batch)[0])


@BY_NAME
def test_finite_far_from_the_old_policy(name: str) -> None:
    objective = build_online(name)
    batch = batch_for(objective, dtype=torch.float32, size=20.0)
    loss = objective.loss(batch)[0]
    (gradient,) = torch.autograd.grad(loss.sum(), leaf_of(batch))
    assert loss.isfinite().all()
    assert gradient.isfinite().all()
