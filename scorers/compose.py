"""Several scorers as one: sums, minima, fronts."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import scorers
from scorers import catalogue
from scorers.base import ScorerBase
from scorers.normalise import Identity, Normaliser, normaliser_of
from scorers.options import check_options, folder_of, read_options
from scorers.protocol import Details, Kind, Need, Scorer


class Composite(ScorerBase):
    """Several pointwise scorers of pictures as one; each part, normalised, is a dimension of its own.

    Scores of parts where less is better count with their sign turned, before they are normalised.

    Args:
        parts: scorers by the name of their dimension.
        normalise: normaliser of each; those that are not named are left as they are.

    Raises:
        ValueError: fewer than two parts, one that does not score single pictures, a normaliser of none.
    """

    licence = "that of each part"
    citation = "that of each part"
    weights = "a json file that names the parts"
    size = "the sum of the parts"

    def __init__(
        self, parts: Mapping[str, Scorer], normalise: Mapping[str, Normaliser] | None = None
    ) -> None:
        """See the class."""
        super().__init__()
        _check_parts(parts, normalise or {})
        self.parts = dict(parts)
        self.normalise = {name: (normalise or {}).get(name, Identity()) for name in parts}
        # Parts that are modules move with this one.
        self.modules_of_parts = nn.ModuleList(p for p in parts.values() if isinstance(p, nn.Module))
        self.dims = (self.name, *parts)
        self.needs: frozenset[Need] = frozenset().union(*(p.needs for p in parts.values()))
        self.differentiable = all(p.differentiable for p in parts.values())
        self.eval().requires_grad_(False)

    @abstractmethod
    def combine(self, scores: Mapping[str, Tensor], prompts: Sequence[str]) -> Tensor:
        """(B,) joint score of (B,) normalised scores by part, of pictures for B prompts."""

    def score_dims(self, x01: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The joint score and, beside it, each part normalised: (B,) float32 each."""
        scores = self.score_parts(x01, prompts)
        return {self.name: self.combine(scores, prompts), **scores}

    def score_parts(self, x01: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """(B,) float32 normalised scores by part."""
        scores = {}
        for name, part in self.parts.items():
            score = part.score_tensor(x01, prompts).float().to(x01.device)
            scores[name] = self.normalise[name](score if part.higher_better else -score)
        return scores

    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,) float32 joint scores; differentiable where all parts are."""
        return self.score_dims(x01, prompts)[self.name]

    def describe(self) -> dict[str, str]:
        """Which parts, and how they are normalised."""
        parts = {f"part.{n}": f"{p.name} {p.version} {self.normalise[n]}" for n, p in self.parts.items()}
        return {**super().describe(), **parts}


@catalogue.register("sum")
class Sum(Composite):
    """Weighted sum of normalised scores.

    Args:
        parts: see Composite.
        amounts: weight of each part; 1 for those that are not named.
        normalise: see Composite.
    """

    name = "sum"

    def __init__(
        self,
        parts: Mapping[str, Scorer],
        amounts: Mapping[str, float] | None = None,
        normalise: Mapping[str, Normaliser] | None = None,
    ) -> None:
        """See the class.

        Raises:
            ValueError: a weight of no part, or see Composite.
        """
        super().__init__(parts, normalise)
        unknown = set(amounts or {}) - set(parts)
        if unknown:
            raise ValueError(
                f"weights of {', '.join(sorted(unknown))}, which are no parts ({', '.join(parts)})"
            )
        self.amounts = {name: (amounts or {}).get(name, 1.0) for name in parts}

    def combine(self, scores: Mapping[str, Tensor], prompts: Sequence[str]) -> Tensor:
        """See Composite."""
        return torch.stack([self.amounts[name] * score for name, score in scores.items()]).sum(0)

    @classmethod
    def load(cls, weights: Path | None, *, device: str | torch.device, dtype: torch.dtype) -> Sum:
        """Load a sum from json: ``{"parts": {"pickscore": {"weight": 0.5, "zscore": [21, 1.5], ...}}}``.

        Options of a part: ``scorer`` (its name where the key is another), ``weights``, ``options`` (those of
        ``scorers.load``), ``weight``, ``zscore`` (mean, std) and ``clip`` (low, high), applied after it, and
        ``allow_hub``, without which the part's weights must be here.

        Raises:
            FileNotFoundError: no file, or weights of a part are not there.
            ValueError: options that are not understood.
        """
        recipe = _read(cls.name, weights)
        parts = {name: _load_part(name, row, weights, device, dtype) for name, row in recipe.items()}
        amounts = {name: float(row.get("weight", 1.0)) for name, row in recipe.items()}
        return cls(parts, amounts, {name: normaliser_of(row) for name, row in recipe.items()})


@catalogue.register("min")
class Min(Composite):
    """The least of the normalised scores: what is good only where every part finds it good."""

    name = "min"

    def combine(self, scores: Mapping[str, Tensor], prompts: Sequence[str]) -> Tensor:
        """See Composite."""
        return torch.stack(list(scores.values())).amin(0)

    @classmethod
    def load(cls, weights: Path | None, *, device: str | torch.device, dtype: torch.dtype) -> Min:
        """Load a minimum from json; see ``Sum.load``, without ``weight``."""
        return cls(*_load_parts(cls.name, weights, device, dtype))


@catalogue.register("pareto")
class Pareto(Composite):
    """Minus the number of a picture's front among the pictures of its prompt: -1 where none beats it.

    One picture beats another where no part puts it lower and one puts it higher.
    """

    name = "pareto"
    range = (-math.inf, -1.0)
    kind: Kind = "groupwise"
    differentiable = False

    def __init__(
        self, parts: Mapping[str, Scorer], normalise: Mapping[str, Normaliser] | None = None
    ) -> None:
        """See the class."""
        super().__init__(parts, normalise)
        self.needs = self.needs | frozenset[Need]({"group"})
        self.differentiable = False  # whatever the parts are

    def combine(self, scores: Mapping[str, Tensor], prompts: Sequence[str]) -> Tensor:
        """See Composite; fronts are those of the pictures given that have one prompt."""
        table = torch.stack([scores[name] for name in self.parts])  # (K, B)
        front = torch.zeros(len(prompts), device=table.device)
        for prompt in dict.fromkeys(prompts):
            rows = torch.tensor([p == prompt for p in prompts], device=table.device)
            front[rows] = -pareto_fronts(table[:, rows]).float()
        front[table.isnan().any(0)] = torch.nan  # nothing beats NaN, so it would stand in the first front
        return front

    def _detailed(
        self, pictures: Sequence[Tensor], texts: Sequence[str], chunk: int
    ) -> Iterator[tuple[list[int], Details]]:
        """Score the parts in chunks, but find the fronts of whole prompts."""
        order: list[int] = []
        pieces: list[dict[str, Tensor]] = []
        for rows, x01 in self._stacks(pictures, chunk):
            order += rows
            with torch.no_grad():
                pieces.append(self.score_parts(x01, [texts[i] for i in rows]))
        parts = {name: torch.cat([p[name] for p in pieces]) for name in self.parts}
        front = self.combine(parts, [texts[i] for i in order])
        yield order, Details(score=front, dims={self.name: front, **parts})

    @classmethod
    def load(cls, weights: Path | None, *, device: str | torch.device, dtype: torch.dtype) -> Pareto:
        """Load from json; see ``Min.load``."""
        return cls(*_load_parts(cls.name, weights, device, dtype))


def pareto_fronts(scores: Tensor) -> Tensor:
    """(n,) int64 front of each of n items with (K, n) scores: 1 where none is better, 2 without those, ..."""
    a, b = scores[:, :, None], scores[:, None, :]
    better = (a >= b).all(0) & (a > b).any(0)  # (n, n), row beats column
    front = torch.zeros(scores.shape[1], dtype=torch.int64, device=scores.device)
    number = 0
    while (front == 0).any():
        number += 1
        left = front == 0
        front[left & ~better[left].any(0)] = number
    return front


def _check_parts(parts: Mapping[str, Scorer], normalise: Mapping[str, Normaliser]) -> None:
    if len(parts) < 2:
        raise ValueError(f"a composition needs two scorers or more, got {', '.join(parts) or 'none'}")
    for name, part in parts.items():
        if part.kind != "pointwise" or part.space != "pixel":
            raise ValueError(
                f"part {name!r} is {part.kind} in {part.space} space; parts score single pictures"
            )
    unknown = set(normalise) - set(parts)
    if unknown:
        raise ValueError(
            f"normalisers of {', '.join(sorted(unknown))}, which are no parts ({', '.join(parts)})"
        )


def _read(name: str, path: Path | None, optional: Sequence[str] = ("weight",)) -> dict[str, dict[str, Any]]:
    what = f'{Composite.weights}: {{"parts": {{NAME: {{options}}}}}}'
    parts = read_options(name, path, what, required=("parts",))["parts"]
    if not isinstance(parts, dict) or not all(isinstance(row, dict) for row in parts.values()):
        raise ValueError(f'scorer {name!r}: {path} must hold {{"parts": {{NAME: {{options}}}}}}')
    keys = ("scorer", "weights", "options", "zscore", "clip", "allow_hub", *optional)
    rows = {n: check_options(f"{path}: part {n}", row, (), keys) for n, row in parts.items()}
    wrong = next((n for n, row in rows.items() if not isinstance(row.get("allow_hub", False), bool)), None)
    if wrong is not None:
        raise ValueError(f"{path}: part {wrong}: allow_hub must be true or false")
    return rows


def _load_parts(
    name: str, path: Path | None, device: str | torch.device, dtype: torch.dtype
) -> tuple[dict[str, Scorer], dict[str, Normaliser]]:
    """Parts and their normalisers, for compositions that weigh none."""
    recipe = _read(name, path, optional=())
    parts = {n: _load_part(n, row, path, device, dtype) for n, row in recipe.items()}
    return parts, {n: normaliser_of(row) for n, row in recipe.items()}


def _load_part(
    name: str, row: Mapping[str, Any], path: Path | None, device: str | torch.device, dtype: torch.dtype
) -> Scorer:
    """A part; its weights are looked for beside the json file."""
    given = folder_of(path) / row["weights"] if "weights" in row else None
    options, hub = row.get("options"), row.get("allow_hub", False)
    return scorers.load(row.get("scorer", name), given, device, dtype, options=options, allow_hub=hub)
