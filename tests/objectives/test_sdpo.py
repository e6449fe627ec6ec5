"""SDPO: golden numbers around three losses, when the safeguard acts, its needs, its block in a recipe."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
import yaml
from torch import Tensor

from diffalign.config import ConfigError, dump, load
from diffalign.objectives import Denoised, Objective, Predictions, build, objectives
from diffalign.objectives.base import name_of
from diffalign.objectives.wrapping import safeguard
from tests.objectives.rows import PRECISIONS, check_golden, golden, random_rows

UNIONS = {
    "objective": objectives.get,
    "objective.pair": objectives.get,
    "objective.pair.pair": objectives.get,
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    objective: Objective


@pytest.mark.parametrize(("dtype", "rtol"), PRECISIONS)
@pytest.mark.parametrize("kind", ["sdpo", "sdpo_active"])
@pytest.mark.parametrize("inner", ["dpo", "dmpo", "dspo"])
def test_golden(inner: str, kind: str, dtype: torch.dtype, rtol: float) -> None:
    d = golden(f"{kind}_{inner}")
    objective = build("sdpo", pair=build(inner, beta=float(d["beta"])), mu=float(d["mu"]))
    metrics = check_golden(objective, f"{kind}_{inner}", dtype, rtol)
    expected = published_scale(d).expand(2)
    torch.testing.assert_close(metrics["lose_scale"].double(), expected, rtol=rtol, atol=0)


def published_scale(d: dict[str, Tensor]) -> Tensor:
    """The file's scale without the 1e-9 that its code adds to <g_w, g_l> (gradients of mean squares)."""
    residual = (d["model_pred"] - d["target"]).flatten(1)
    both = (residual[:2] * residual[2:]).sum() * (2 / residual[:2].numel()) ** 2
    return torch.where(both > 0, d["lose_l_scale"] * (1 + 1e-9 / both), d["lose_l_scale"])


def residuals(win: list[float], lose: list[float], role: list[int]) -> Denoised:
    """A pair of one-element predictions with target 0."""
    pred = torch.tensor([*win, *lose], dtype=torch.float64).view(2, -1, 1, 1).requires_grad_(True)
    zero = torch.zeros_like(pred).detach()
    return Denoised(
        error=pred.square().flatten(1).mean(1),
        ref_error=torch.ones(2, dtype=torch.float64),
        group=torch.tensor([0, 0]),
        role=torch.tensor(role),
        t=torch.zeros(2),
        tensors=Predictions(pred=pred, ref_pred=zero, target=zero, x_t=zero, x0=zero),
    )


def test_the_scale_by_hand() -> None:
    batch = residuals([1.0, 0.0], [2.0, 3.0], [1, -1])  # |g_w|^2 = 1, <g_w, g_l> = 2
    assert safeguard(batch, 0.5).item() == pytest.approx(0.25)
    assert safeguard(batch, 1.0).item() == 0
    assert safeguard(replace(batch, role=-batch.role), 0.5).item() == 1  # 0.5 * 13 / 2, cut at 1


@pytest.mark.parametrize("lose", [[-2.0, 3.0], [0.0, 3.0], [0.0, 0.0]])
def test_without_conflict_it_is_the_loss_within(lose: list[float]) -> None:
    batch = residuals([1.0, 0.0], lose, [1, -1])
    assert batch.tensors is not None
    plain, guarded = (o.loss(batch)[0].sum() for o in (build("dpo"), build("sdpo", mu=0.9)))
    pred = batch.tensors.pred
    one, other = (torch.autograd.grad(x, pred, retain_graph=True)[0] for x in (plain, guarded))
    assert safeguard(batch, 0.9).item() == 1
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_only_the_losers_gradient_changes_and_no_value() -> None:
    batch = random_rows(4)
    assert batch.tensors is not None
    inner, outer = build("dpo"), build("sdpo", mu=0.99)
    close = batch.tensors.pred.detach().clone()
    close[4:] = close[:4] - batch.tensors.target[:4] + batch.tensors.target[4:]  # losers as wrong as winners
    tensors = replace(batch.tensors, pred=close)
    error = batch.error.detach().requires_grad_(True)
    batch = replace(batch, tensors=tensors, error=error)
    (plain, _), (guarded, metrics) = inner.loss(batch), outer.loss(batch)
    torch.testing.assert_close(plain, guarded, rtol=0, atol=0)
    one, other = (torch.autograd.grad(x.sum(), error, retain_graph=True)[0] for x in (plain, guarded))
    torch.testing.assert_close(other[:4], one[:4], rtol=0, atol=0)
    torch.testing.assert_close(other[4:], 0.01 * one[4:])
    assert metrics["lose_scale"].tolist() == pytest.approx([0.01] * 4)


def test_ties_are_neither_counted_nor_scaled() -> None:
    assert safeguard(residuals([1.0, 0.0], [2.0, 3.0], [0, 0]), 0.9).item() == 1


def test_it_declares_what_the_loss_within_needs() -> None:
    assert build("sdpo").needs == {"tensors"}
    assert build("sdpo", pair=build("smpo")).needs == {"tensors", "soft"}
    assert build("sdpo").needs_reference
    assert not build("sdpo", pair=build("mapo")).needs_reference
    assert build("sdpo").coupled


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match=r"mu is 1.5; it must be in \[0, 1\]"):
        build("sdpo", mu=1.5)
    with pytest.raises(ValueError, match=r"on pairs.*this one is on winners"):
        build("sdpo", pair=build("sft"))
    with pytest.raises(ValueError, match=r"on pairs.*this one is on dict"):
        build("sdpo", pair={"name": "dpo"})
    with pytest.raises(ValueError, match="sdpo needs prediction tensors"):
        build("sdpo").loss(replace(random_rows(1), tensors=None))


def test_the_nested_block_goes_to_yaml_and_back() -> None:
    block = {"name": "sdpo", "mu": 0.2, "pair": {"name": "with_terms", "pair": {"name": "dmpo", "beta": 7.0}}}
    recipe = load(Recipe, {"objective": block}, unions=UNIONS)
    inner = build("with_terms", pair=build("dmpo", beta=7.0))
    assert recipe.objective == build("sdpo", mu=0.2, pair=inner)
    text = dump(recipe, dict.fromkeys(UNIONS, name_of))
    assert "name: dmpo" in text
    assert load(Recipe, yaml.safe_load(text), unions=UNIONS) == recipe
    with pytest.raises(ConfigError, match=r"objective.pair.gamma"):
        load(Recipe, {"objective": {"name": "sdpo", "pair": {"name": "dpo", "gamma": 1}}}, unions=UNIONS)
