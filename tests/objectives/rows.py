"""Batches for tests of objectives: from golden files, by hand, and random."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffalign.diffusion.spaces import native_error
from diffalign.objectives import Denoised, Objective, Predictions

FOLDER = Path(__file__).parents[1] / "golden" / "offline"
PRECISIONS = [(torch.float64, 1e-6), (torch.float32, 2e-4)]


def golden(name: str, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Tensors of a golden file, floats in ``dtype``."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        found = {k: torch.as_tensor(file[k]) for k in file.files}
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in found.items()}


def rows(pred: Tensor, ref_pred: Tensor | None, target: Tensor, **fields: Tensor) -> Denoised:
    """Pairs in the order of the golden files: all winners, then all losers; other fields override."""
    n = len(pred) // 2
    given = {
        "group": torch.arange(n).repeat(2),
        "role": torch.tensor([1] * n + [-1] * n),
        "t": torch.zeros(2 * n),
    }
    return Denoised(
        error=native_error(pred, target),
        ref_error=None if ref_pred is None else native_error(ref_pred, target),
        tensors=Predictions(pred=pred, ref_pred=ref_pred, target=target, x_t=target, x0=target),
        **(given | fields),
    )


def check_golden(
    objective: Objective, name: str, dtype: torch.dtype, rtol: float, **fields: Tensor
) -> dict[str, Tensor]:
    """Compare loss and gradient with a golden file of pairs; returns the metrics."""
    d, exact = golden(name, dtype), golden(name)
    pred = d["model_pred"].clone().requires_grad_(True)
    loss, metrics = objective.loss(rows(pred, d.get("ref_pred"), d["target"], **fields))
    compare(loss.mean(), pred, exact["loss"], exact["grad_model_pred"], rtol)
    return metrics


def compare(loss: Tensor, pred: Tensor, value: Tensor, gradient: Tensor, rtol: float) -> None:
    """Loss by relative error; gradient by its error against its largest element."""
    torch.testing.assert_close(loss.double(), value.double(), rtol=rtol, atol=0)
    found = torch.autograd.grad(loss, pred)[0].double()
    assert (found - gradient.double()).abs().max() <= rtol * gradient.abs().max()


def random_rows(pairs: int, seed: int = 0, **fields: Tensor) -> Denoised:
    """Random float64 pairs with tensors, differentiable in ``tensors.pred``; errors about 1 and 2 % apart."""
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.randn(2 * pairs, 4, 4, 4, generator=generator, dtype=torch.float64) for _ in range(3)]
    target, pred = draw[0], (draw[0] + draw[1]).requires_grad_(True)
    return rows(pred, draw[0] + draw[1] + 0.01 * draw[2], target, **fields)
