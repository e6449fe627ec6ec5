"""How far several scorers say the same of the same pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from scorers.diversity import vendi_of_gram


@dataclass(frozen=True, kw_only=True)
class Decorrelation:
    """How far several scorers say the same."""

    names: tuple[str, ...]
    pearson: Tensor
    """(K, K) float64 correlations of scores."""
    spearman: Tensor
    """(K, K) float64 correlations of ranks; equal scores share their mean rank."""
    effective: float
    """Effective number of opinions, 1 to K: exp of the entropy of the eigenvalues of pearson / K."""
    explained: Tensor
    """(K,) float64 share of each scorer's variance that the others explain linearly; near 1 is redundant."""

    def redundant(self, least: float = 0.9) -> list[str]:
        """Names of scorers that the others explain to this share."""
        return [
            name for name, share in zip(self.names, self.explained.tolist(), strict=True) if share >= least
        ]


def decorrelation(scores: Mapping[str, Tensor]) -> Decorrelation:
    """Compare what K scorers say of the same N pictures.

    Args:
        scores: (N,) by name, N above K.

    Raises:
        ValueError: fewer than two scorers, too few pictures, other lengths, or scores that are not finite or
            all the same.
    """
    table = _table(scores)
    pearson = torch.corrcoef(table)
    spearman = torch.corrcoef(torch.stack([_ranks(row) for row in table]))
    # Of a correlation matrix, 1 / (its inverse's diagonal) is the variance that the others leave.
    inverse = torch.linalg.pinv(pearson, hermitian=True).diagonal()
    exact = torch.linalg.matrix_rank(pearson, hermitian=True) < len(pearson)
    explained = _explained(pearson) if exact else 1 - 1 / inverse
    return Decorrelation(
        names=tuple(scores),
        pearson=pearson,
        spearman=spearman,
        effective=float(vendi_of_gram(pearson)),
        explained=explained.clamp(0, 1),
    )


def _explained(pearson: Tensor) -> Tensor:
    """(K,) R squared of each by the others, also where some are sums of others."""
    found = []
    for i in range(len(pearson)):
        rest = [j for j in range(len(pearson)) if j != i]
        r = pearson[i, rest]
        found.append(r @ torch.linalg.pinv(pearson[rest][:, rest], hermitian=True) @ r)
    return torch.stack(found)


def _table(scores: Mapping[str, Tensor]) -> Tensor:
    lengths = {name: len(s) for name, s in scores.items()}
    if len(scores) < 2 or len(set(lengths.values())) > 1:
        raise ValueError(f"decorrelation compares two scorers or more on the same pictures, got {lengths}")
    table = torch.stack([s.detach().double().cpu() for s in scores.values()])
    if table.shape[1] <= len(table):
        raise ValueError(f"{table.shape[1]} pictures are too few to compare {len(table)} scorers")
    for name, row in zip(scores, table, strict=True):
        if not row.isfinite().all() or bool((row == row[0]).all()):
            raise ValueError(f"scores of {name} are not finite or all the same; leave it out")
    return table


def _ranks(x: Tensor) -> Tensor:
    """(N,) ranks of (N,) values; equal values share their mean rank."""
    _, inverse, counts = x.unique(return_inverse=True, return_counts=True)
    mean: Tensor = counts.cumsum(0).double() - (counts - 1) / 2
    return mean[inverse]
