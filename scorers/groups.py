"""Scores of a group of pictures from who beats whom, also where preferences run in circles."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

SHARPEST = 1e-4
"""Weight of the entropy in the last step towards the von Neumann winner."""


def mean_win(matrix: Tensor) -> Tensor:
    """(n,) mean of each row of an (n, n) matrix without its diagonal: win rates, or mean win logits.

    Raises:
        ValueError: fewer than two pictures, or not a square.
    """
    _check(matrix)
    n = len(matrix)
    if n < 2:
        raise ValueError("a win rate needs at least two pictures")
    off: Tensor = matrix.masked_fill(torch.eye(n, dtype=torch.bool, device=matrix.device), 0)
    return off.sum(1) / (n - 1)


def von_neumann_winner(prob: Tensor) -> Tensor:
    """(n,) lottery over pictures that no picture beats more often than half the time; float32, sum 1.

    The mixed equilibrium of the game "choose the better picture" (Dudik et al., 2015, arXiv:1502.06362).
    Where several exist it is near the one of largest entropy, so equal pictures get equal shares and the
    order does not matter. Solved with an entropy term that shrinks to 1e-4, by Newton's method, in float64.

    Args:
        prob: (n, n) chance that picture i beats picture j; prob + prob.T = 1.

    Raises:
        ValueError: not a square of probabilities that add up to 1.
    """
    _check(prob)
    gain = prob.double().cpu() - 0.5  # (n, n) antisymmetric
    if not torch.allclose(gain, -gain.T, atol=1e-5) or not bool(gain.isfinite().all()):
        raise ValueError("prob[i, j] + prob[j, i] must be 1 for every pair of pictures")
    x = torch.zeros(len(gain), dtype=torch.float64)  # logarithms of the shares, up to a constant
    weight = 1.0
    while weight > SHARPEST:
        weight = max(weight / 2, SHARPEST)
        x = _newton(x, gain / weight)
    return x.softmax(0).float().to(prob.device)


def cyclic_share(prob: Tensor) -> float:
    """Share of the triples of an (n, n) matrix of chances whose majorities run in a circle, in [0, 1].

    A number drawn for each picture could never give one; coin tosses give 1/4.
    """
    _check(prob)
    beats = prob > 0.5
    triples = list(combinations(range(len(prob)), 3))
    circles = sum(
        bool((beats[a, b] and beats[b, c] and beats[c, a]) or (beats[b, a] and beats[c, b] and beats[a, c]))
        for a, b, c in triples
    )
    return circles / len(triples) if triples else 0.0


def _newton(x: Tensor, gain: Tensor) -> Tensor:
    """Solve x = gain @ softmax(x) from a start near by."""
    eye = torch.eye(len(x), dtype=x.dtype)
    for _ in range(100):
        p = x.softmax(0)
        miss = x - gain @ p
        if float(miss.abs().max()) < 1e-9:
            break
        slope = eye - gain @ (torch.diag(p) - torch.outer(p, p))
        step, rate = torch.linalg.solve(slope, miss), 1.0
        while rate > 1e-4 and _miss(x - rate * step, gain) >= float(miss.norm()):
            rate /= 2
        x = x - rate * step
    return x


def _miss(x: Tensor, gain: Tensor) -> float:
    return float((x - gain @ x.softmax(0)).norm())


def _check(matrix: Tensor) -> None:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise ValueError(f"a square matrix of pictures against pictures is needed, got {tuple(matrix.shape)}")
