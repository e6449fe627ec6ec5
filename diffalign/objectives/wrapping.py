"""What objectives around another pair objective share: checks, declared needs, and a scaled losing side."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from diffalign.objectives.base import Denoised, Objective
from diffalign.objectives.filled import tensors_of
from diffalign.objectives.pairs import pair_order


def adopt(wrapper: Objective, pair: Objective, needs: set[str], reference: bool, coupled: bool) -> None:
    """Let a frozen wrapper declare what it and the objective within it need together.

    Args:
        wrapper: objective being made.
        pair: objective within it.
        needs: what the wrapper itself needs.
        reference: whether the wrapper itself needs the reference.
        coupled: whether the wrapper itself mixes units.

    Raises:
        ValueError: ``pair`` is no objective on pairs.
    """
    data = pair.data if isinstance(pair, Objective) else type(pair).__name__
    if data != "pairs":
        raise ValueError(
            f"pair takes an objective on pairs, for example {{name: dpo}}; this one is on {data}"
        )
    wrapper._declare(needs=pair.needs | needs, coupled=pair.coupled or coupled)
    object.__setattr__(wrapper, "needs_reference", pair.needs_reference or reference)


def scale_losers(batch: Denoised, factor: Tensor | float) -> Denoised:
    """The batch with the gradient of every losing row's error (role -1) multiplied; no value changes."""
    scaled = batch.error.detach() + factor * (batch.error - batch.error.detach())
    return replace(batch, error=torch.where(batch.role < 0, scaled, batch.error))


def safeguard(batch: Denoised, mu: float) -> Tensor:
    """SDPO's lambda, one number for the batch, without gradient.

    lambda = clip((1 - mu) |g_w|^2 / <g_w, g_l>, 0, 1) where <g_w, g_l> > 0, else 1, with the residuals
    g = prediction - target of all decided winners and losers of the batch; ties and rows of weight 0 are left
    out.
    """
    tensors = tensors_of(batch, "sdpo")
    order = pair_order(batch.group, batch.role)  # (P, 2)
    residual = (tensors.pred - tensors.target).detach().flatten(1).to(batch.error.dtype)[order]  # (P, 2, D)
    decided = ((batch.role > 0) * batch.counted())[order[:, 0]].to(residual.dtype)  # (P,)
    own = (decided * residual[:, 0].square().sum(1)).sum()
    both = (decided * (residual[:, 0] * residual[:, 1]).sum(1)).sum()
    return torch.where(both > 0, ((1 - mu) * own / both).clamp(0, 1), torch.ones_like(own))
