"""Golden files and small batches of online objectives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffalign.diffusion.spaces import native_error
from diffalign.objectives import Denoised, Predictions
from diffalign.objectives.steps import OnlineObjective, Steps

FOLDER = Path(__file__).parents[1] / "golden" / "online"
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def golden(name: str) -> dict[str, Tensor]:
    """Tensors of a golden file."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        return {k: torch.as_tensor(file[k]) for k in file.files}


def check_gradient(loss: Tensor, leaf: Tensor, wanted: Tensor, rtol: float = 1e-4) -> None:
    """Gradient by its error against its largest element."""
    (found,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    assert (found - wanted).abs().max() <= rtol * wanted.abs().max()


def rollouts(d: dict[str, Tensor], pred: Tensor, group: Tensor, **extra: Tensor) -> Denoised:
    """Noised pictures of a golden file, flow as published; ``target`` is the true velocity."""
    target = d["noise"] - d["x0"]
    return Denoised(
        error=native_error(pred, target),
        ref_error=native_error(d["v_ref"], target),
        group=group,
        role=torch.zeros_like(group),
        t=d["t"],
        score=d["advantages"],
        extra={"old_error": native_error(d["v_old"], target), "x0_slope": d["t"], **extra},
        tensors=Predictions(
            pred=pred, ref_pred=d["v_ref"], target=target, x_t=d["x_t"], x0=d["x0"], old_pred=d["v_old"]
        ),
    )


def steps_of(
    logp: list[float], advantage: list[float], old: float = 0.0, **given: Tensor | int | None
) -> Steps:
    """Float64 steps by hand, each of a prompt of its own."""
    n = len(logp)
    fields = {
        "old_logp": torch.full((n,), old, dtype=torch.float64),
        "advantage": torch.tensor(advantage, dtype=torch.float64),
        "group": torch.arange(n),
        "role": torch.zeros(n).long(),
    }
    leaf = torch.tensor(logp, dtype=torch.float64, requires_grad=True)
    return Steps(logp=leaf, **(fields | given))


def loss_of(
    objective: OnlineObjective, batch: Steps | Denoised
) -> tuple[list[float], Tensor, dict[str, Tensor]]:
    """Losses, their gradient in the log-probabilities or errors, and metrics."""
    loss, metrics = objective.loss(batch)
    leaf = batch.logp if isinstance(batch, Steps) else batch.error
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    return loss.tolist(), gradient, metrics
