"""Batches of every data kind with everything that an objective may ask for, and what is done to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from diffalign.diffusion.spaces import native_error
from diffalign.objectives import Denoised, Objective, Predictions, build
from diffalign.objectives.base import DataKind

ROWS: dict[DataKind, int] = {"pairs": 2, "ranking": 4, "labels": 1, "winners": 1}
"""Images of one comparison unit."""
SHAPE = (2, 3, 3)
"""Of one latent."""
FIELDS = frozenset({"score", "soft", "margin", "tensors"})
"""Optional fields that an objective may name in ``needs``; each is None unless it does."""
EXTRAS = (
    "kl_error",
    "kl_ref_error",
    "ema_error",
    "old_error",
    "other_error",
    "other_disagrees",
    "anchor_error",
    "anchor_ref_error",
    "rollout_distance",
)


@dataclass(kw_only=True)
class Made:
    """A batch, and the predictions that its errors are of."""

    batch: Denoised
    pred: Tensor
    """(N, C, H, W) leaf with gradient."""
    ref_pred: Tensor
    """(N, C, H, W) leaf that would take a gradient if anyone sent it one."""
    target: Tensor
    """(N, C, H, W) what should have been predicted."""


def roles(data: DataKind, units: int) -> Tensor:
    """(N,) roles: winner first, likes and dislikes in turn."""
    if data == "labels":
        return torch.tensor([1, -1] * units)[:units]
    return torch.tensor(([1] + [-1] * (ROWS[data] - 1)) * units)


def make_batch(
    objective: Objective,
    units: int = 6,
    *,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    pred: Tensor | None = None,
    ref_pred: Tensor | None = None,
    **given: Tensor,
) -> Made:
    """A random batch with errors of about 0.12 and gaps of about 0.002, as in training.

    Args:
        objective: says the data kind and what it needs.
        units: comparison units.
        dtype: of errors.
        seed: of all numbers.
        pred: predictions less the target, instead of random ones.
        ref_pred: the same for the reference.
        given: further fields of Denoised.
    """
    draw = torch.Generator().manual_seed(seed)
    n = units * ROWS[objective.data]

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    target = normal(n, *SHAPE)
    away = 0.35 * normal(n, *SHAPE)
    pred = away if pred is None else pred
    ref_pred = away + 0.005 * normal(n, *SHAPE) if ref_pred is None else ref_pred
    leaf, ref_leaf = ((target + x).to(dtype).requires_grad_(True) for x in (pred, ref_pred))
    target = target.to(dtype)
    pools = _pools(objective, n, normal)
    known: dict[str, Any] = {k: v.to(dtype) for k, v in pools.items() if k in objective.needs}
    if "tensors" in objective.needs:
        known["tensors"] = Predictions(
            pred=leaf, ref_pred=ref_leaf, target=target, x_t=target, x0=target, old_pred=ref_leaf
        )
    batch = Denoised(
        error=native_error(leaf, target),
        ref_error=native_error(ref_leaf, target) if objective.needs_reference else None,
        group=torch.arange(units).repeat_interleave(ROWS[objective.data]),
        role=roles(objective.data, units),
        t=torch.arange(100, 100 + units).repeat_interleave(ROWS[objective.data]).to(dtype),
        extra=_extras(objective, n, normal, dtype),
        **known | given,
    )
    return Made(batch=batch, pred=leaf, ref_pred=ref_leaf, target=target)


def _pools(objective: Objective, n: int, normal: Callable[..., Tensor]) -> dict[str, Tensor]:
    """Scores that fall within each unit, soft labels of 0.8, margins of 0.3."""
    score = normal(n).sigmoid().view(-1, ROWS[objective.data]).sort(1, descending=True).values.flatten()
    soft = 0.5 + 0.3 * roles(objective.data, n // ROWS[objective.data])
    return {"score": score, "soft": soft, "margin": torch.full((n,), 0.3, dtype=torch.float64)}


def _extras(
    objective: Objective, n: int, normal: Callable[..., Tensor], dtype: torch.dtype
) -> dict[str, Tensor]:
    found = {name: (0.12 + 0.002 * normal(n)).to(dtype) for name in EXTRAS}
    found["prompt_features"] = normal(n, 5).to(dtype)
    return {k: v for k, v in found.items() if k in objective.needs}


def unknown_needs(objective: Objective) -> set[str]:
    """Needs that ``make_batch`` does not fill."""
    return set(objective.needs) - FIELDS - set(EXTRAS) - {"prompt_features"}


def take(batch: Denoised, rows: Tensor) -> Denoised:
    """The batch of some rows, in this order."""

    def pick(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[rows]
        if isinstance(value, Predictions):
            return Predictions(**{f.name: pick(getattr(value, f.name)) for f in fields(value)})
        return {k: pick(v) for k, v in value.items()} if isinstance(value, dict) else value

    return Denoised(**{f.name: pick(getattr(batch, f.name)) for f in fields(batch)})


def exchanged(batch: Denoised) -> Denoised:
    """A batch of pairs whose sides have changed places: what was said of one image is said of the other."""
    moved = take(batch, torch.arange(len(batch.role)).view(-1, 2).flip(1).flatten())
    return replace(moved, role=batch.role, score=batch.score, soft=batch.soft)


def variants(name: str) -> list[dict[str, Any]]:
    """Options under which an objective is tried: its own defaults, and what changes what it computes."""
    more: dict[str, list[dict[str, Any]]] = {
        "dpo": [{"auto_beta": True}],
        "kto": [
            *({"utility": u} for u in ("loss_averse", "risk_seeking_1", "risk_seeking_2", "risk_seeking_3")),
            *({"kl": k} for k in ("balanced", "mismatched", "zero")),
        ],
        "bco": [{"shift": "none"}],
        "aot": [{"compare": "reference"}],
        "apo_zero": [{"anchor": "down"}],
        "rankdpo": [{"ranks": "model"}, {"renormalise": True}],
    }
    return [{}, *more.get(name, [])]


def every() -> list[tuple[str, dict[str, Any]]]:
    """Name and options of all registered objectives, in all variants."""
    from diffalign.objectives import names

    return [(name, options) for name in names() for options in variants(name)]


def label(name: str, options: dict[str, Any]) -> str:
    """Readable id of a case."""
    return "-".join([name, *(f"{k}={v}" for k, v in options.items())])


def made(name: str, options: dict[str, Any]) -> Objective:
    """Build the objective of a case."""
    return build(name, **options)
