"""How different the pictures of a set are: Vendi score, mean distances. Pure functions of features."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def vendi(features: Tensor, q: float = 1.0) -> Tensor:
    """Vendi score: the effective number of different rows, by the cosines between them.

    VS_q = exp(H_q(l)), with l the eigenvalues of the cosine matrix K / n and H_q the Renyi entropy (Friedman
    and Dieng 2023, arXiv:2210.02410; Pasarkar and Dieng 2023, arXiv:2310.12952). Where n > D they are taken
    of the D x D dual, which has the same ones.

    Args:
        features: (..., n, D), no row of them zero.
        q: order, 0 or more; 1 is Shannon's, infinity asks for the largest eigenvalue only.

    Returns:
        (...) float64 between 1 (all alike) and n (all at right angles).

    Raises:
        ValueError: a row of length 0 or q below 0.
    """
    x = unit(features)
    n, width = x.shape[-2:]
    gram = x @ x.mT if n <= width else x.mT @ x
    return effective_number(gram / n, q)


def vendi_of_gram(gram: Tensor, q: float = 1.0, shares: Tensor | None = None) -> Tensor:
    """Vendi score of similarities instead of features.

    Args:
        gram: (..., n, n) positive semi-definite; it is scaled to a diagonal of 1.
        q: see ``vendi``.
        shares: (n,) weights that add up to 1; None counts all rows alike.

    Raises:
        ValueError: no square matrix, a diagonal that is not positive, or weights that are no shares.
    """
    n = gram.shape[-1]
    if gram.ndim < 2 or gram.shape[-2] != n:
        raise ValueError(f"similarities must be (..., n, n), got {tuple(gram.shape)}")
    k = gram.double()
    diagonal = k.diagonal(dim1=-2, dim2=-1)
    if not (diagonal > 0).all():
        raise ValueError("similarities have a diagonal that is not positive: a row is not similar to itself")
    root = _shares(n, shares).to(k.device).sqrt() / diagonal.sqrt()  # (..., n)
    return effective_number(k * root[..., :, None] * root[..., None, :], q)


def effective_number(matrix: Tensor, q: float = 1.0) -> Tensor:
    """(...) float64 exp of the Renyi entropy of order q of the eigenvalues of (..., n, n) of trace 1.

    Raises:
        ValueError: q below 0.
    """
    if not q >= 0:
        raise ValueError(f"q is {q}; the order of the Vendi score is 0 or more")
    share = torch.linalg.eigvalsh(matrix.double())
    # Rounding leaves tiny eigenvalues where there should be none; for small q they would count as pictures.
    least = matrix.shape[-1] * torch.finfo(torch.float64).eps * share.amax(-1, keepdim=True)
    share = torch.where(share > least, share, 0.0)
    if q == 1:
        entropy: Tensor = torch.special.entr(share).sum(-1)
        return entropy.exp()
    if math.isinf(q):
        largest: Tensor = share.amax(-1)
        return 1 / largest
    powers = torch.where(share > 0, share**q, 0.0).sum(-1)
    out: Tensor = (powers.log() / (1 - q)).exp()
    return out


def mean_cosine_distance(features: Tensor) -> Tensor:
    """(...) float64 1 - the mean cosine between different rows of (..., n, D), n at least 2; in [0, 2].

    Raises:
        ValueError: fewer than two rows, or one of length 0.
    """
    x = unit(features)
    n = _at_least_two(x)
    total: Tensor = x.sum(-2).square().sum(-1) - n  # sum over pairs i != j of their cosines
    return 1 - total / (n * (n - 1))


def mean_squared_distance(features: Tensor) -> Tensor:
    """(...) float64 mean squared Euclidean distance between different rows of (..., n, D), n at least 2.

    Raises:
        ValueError: fewer than two rows.
    """
    x = features.double()
    n = _at_least_two(x)
    centred = x - x.mean(-2, keepdim=True)
    total: Tensor = 2 * centred.square().sum((-2, -1)) / (n - 1)
    return total


def unit(features: Tensor) -> Tensor:
    """(..., n, D) float64 rows of length 1.

    Raises:
        ValueError: a row of length 0 has no direction.
    """
    x = features.double()
    norm = x.norm(dim=-1, keepdim=True)
    if (norm == 0).any():
        place = (norm[..., 0] == 0).nonzero()[0].tolist()
        raise ValueError(f"the features of row {place} are all 0, so they have no direction")
    out: Tensor = x / norm
    return out


def _at_least_two(x: Tensor) -> int:
    if x.shape[-2] < 2:
        raise ValueError("diversity is of two pictures or more; give more seeds of each prompt")
    return x.shape[-2]


def _shares(n: int, shares: Tensor | None) -> Tensor:
    if shares is None:
        return torch.full((n,), 1 / n, dtype=torch.float64)
    if shares.shape != (n,) or (shares < 0).any() or abs(float(shares.double().sum()) - 1) > 1e-6:
        raise ValueError(f"weights must be ({n},), not negative, and add up to 1")
    return shares.double()
