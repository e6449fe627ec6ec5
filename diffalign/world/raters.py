"""Simulated people: a utility over what the oracle measures, and noisy, sometimes careless, votes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from diffalign.world.grammar import Prompt
from diffalign.world.oracle import Measurements, measure, obeys

LIMIT = 2.0
"""An axis counts up to so many s.d.: nobody wants a shape without end."""
DISOBEDIENT = -1.0
"""Added to the utility of a recognisable picture that does not show what its prompt asks."""

Axis = Callable[[Measurements], Tensor]


def _first(found: Measurements, name: str) -> Tensor:
    column: Tensor = getattr(found, name)[:, 0]
    return column


def _warmth(found: Measurements) -> Tensor:
    """How warm the background is: red minus blue."""
    return (found.background_rgb[:, 0] - found.background_rgb[:, 2]) / 0.4


def _centredness(found: Measurements) -> Tensor:
    out: Tensor = (0.13 - (found.centre[:, 0] - 0.5).norm(dim=1)) / 0.08
    return out


AXES: dict[str, Axis] = {
    "size": lambda m: (_first(m, "radius") - 0.28) / 0.058,
    "centre": _centredness,
    "height": lambda m: (0.5 - m.centre[:, 0, 1]) / 0.12,
    "side": lambda m: (m.centre[:, 0, 0] - 0.5) / 0.12,
    "shade": lambda m: (_first(m, "value") - 0.775) / 0.13,
    "warmth": _warmth,
    "saturation": lambda m: (_first(m, "saturation") - 0.8) / 0.115,
    "sharpness": lambda m: (2.0 - m.edge_width) / 0.5,
    "plainness": lambda m: (0.03 - m.roughness) / 0.03,
}
"""What people may care for, each about zero mean and unit s.d. over rendered pictures."""

TASTES: dict[str, Mapping[str, float]] = {
    "large": {"size": 1.0},
    "small": {"size": -1.0},
    "centred": {"centre": 1.0},
    "off-centre": {"centre": -1.0},
    "high": {"height": 1.0},
    "low": {"height": -1.0},
    "left": {"side": -1.0},
    "right": {"side": 1.0},
    "light": {"shade": 1.0},
    "dark": {"shade": -1.0},
    "warm": {"warmth": 1.0},
    "cool": {"warmth": -1.0},
    "saturated": {"saturation": 1.0},
    "pale": {"saturation": -1.0},
    "sharp": {"sharpness": 1.0},
    "soft": {"sharpness": -1.0},
    "plain": {"plainness": 1.0},
    "patterned": {"plainness": -1.0},
}
"""Named tastes that a person could have, in opposite pairs."""

CLOSED_BY: dict[str, Callable[[Prompt], bool]] = {
    "size": lambda p: p.size is not None or p.relation is not None,
    "warmth": lambda p: p.background is not None,
    "centre": lambda p: p.relation is not None,
    "height": lambda p: p.relation is not None,
    "side": lambda p: p.relation is not None,
}
"""Prompts that settle an axis, so that a taste for it has nothing left to say."""


def leaves_open(prompt: Prompt, weights: Mapping[str, float]) -> bool:
    """Say whether a prompt leaves at least one axis of a taste open."""
    return any(not is_closed(axis, prompt) for axis in weights)


def is_closed(axis: str, prompt: Prompt) -> bool:
    """Say whether a prompt settles an axis."""
    rule = CLOSED_BY.get(axis)
    return rule is not None and rule(prompt)


@dataclass(frozen=True, kw_only=True)
class Rater:
    """One simulated person.

    The chance to prefer picture a over b is sigmoid((u(a) - u(b)) / temperature) (Bradley-Terry); pictures
    whose
    utilities differ by less than ``tie_below`` are called a tie. A careless rater votes at random.
    """

    name: str
    weights: Mapping[str, float]
    temperature: float = 0.4
    tie_below: float = 0.1
    careless: float = 0.0

    def __post_init__(self) -> None:
        """Check names and ranges.

        Raises:
            ValueError: an unknown axis, a temperature <= 0, or ``careless`` outside [0, 1].
        """
        unknown = set(self.weights) - set(AXES)
        if unknown:
            raise ValueError(
                f"rater {self.name!r} weighs unknown axes {sorted(unknown)}; there are {', '.join(AXES)}"
            )
        if self.temperature <= 0 or not 0 <= self.careless <= 1:
            raise ValueError(f"rater {self.name!r} needs temperature > 0 and careless in [0, 1]")

    @property
    def unrecognisable(self) -> float:
        """Utility of a picture without a recognisable shape: the lowest of all, so destroying never wins."""
        return DISOBEDIENT - 0.5 - LIMIT * sum(abs(w) for w in self.weights.values())

    def utility(self, found: Measurements, prompts: Sequence[Prompt]) -> Tensor:
        """(B,) noise-free utility of B measured pictures for their prompts; axes are cut at LIMIT."""
        total = torch.zeros(len(prompts))
        for axis, weight in self.weights.items():
            closed = torch.tensor([is_closed(axis, p) for p in prompts], dtype=torch.bool)
            total += weight * torch.where(closed, 0.0, AXES[axis](found).clamp(-LIMIT, LIMIT))
        total += torch.where(obeys(found, prompts).all, 0.0, DISOBEDIENT)
        return torch.where(found.recognised, total, self.unrecognisable)

    def score(self, pictures: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """(B,) noise-free utility of (B, 3, 64, 64) pictures in [0, 1]."""
        return self.utility(measure(pictures), prompts)

    def vote(self, first: Tensor, second: Tensor, rng: np.random.Generator) -> np.ndarray:
        """(B,) noisy votes on utilities: 1 for the first picture, 0 for the second, 0.5 for a tie."""
        gap = (first - second).double().numpy()
        chance = 0.5 * (1 + np.tanh(gap / self.temperature / 2))
        votes = (rng.random(len(gap)) < chance).astype(float)
        votes[np.abs(gap) < self.tie_below] = 0.5
        careless = rng.random(len(gap)) < self.careless
        votes[careless] = rng.integers(0, 2, int(careless.sum()))
        return votes


def named_rater(taste: str, temperature: float = 0.4, careless: float = 0.0) -> Rater:
    """Return a person with one of the TASTES.

    Raises:
        ValueError: no such taste; the message lists them.
    """
    if taste not in TASTES:
        raise ValueError(f"no taste {taste!r}; there are {', '.join(TASTES)}")
    return Rater(name=taste, weights=TASTES[taste], temperature=temperature, careless=careless)


@dataclass(frozen=True, kw_only=True)
class Population:
    """People who share a taste in part: shared weights + their cluster's + their own; some are careless."""

    people: int = 20
    clusters: int = 4
    shared: float = 0.5
    """Scale of the taste that all share."""
    cluster: float = 1.0
    """Scale of the taste of each cluster; clusters 2k and 2k + 1 have opposite tastes."""
    individual: float = 0.3
    """Scale of what is a person's own."""
    careless_people: int = 2
    """How many vote at random half of the time."""
    temperature: float = 0.4
    seed: int = 0
    axes: tuple[str, ...] = field(default=tuple(AXES))

    def raters(self) -> list[Rater]:
        """Draw the people; the same seed gives the same people."""
        rng = np.random.default_rng(self.seed)
        shared = self.shared * _direction(rng, len(self.axes))
        half = [_direction(rng, len(self.axes)) for _ in range((self.clusters + 1) // 2)]
        centres = [self.cluster * (1 - 2 * (k % 2)) * half[k // 2] for k in range(self.clusters)]
        careless = set(rng.permutation(self.people)[: self.careless_people].tolist())
        return [
            self._person(i, shared + centres[i % self.clusters], i in careless, rng)
            for i in range(self.people)
        ]

    def _person(self, i: int, base: np.ndarray, careless: bool, rng: np.random.Generator) -> Rater:
        weights = base + self.individual * _direction(rng, len(self.axes))
        return Rater(
            name=f"person-{i:03d}",
            weights=dict(zip(self.axes, weights.tolist(), strict=True)),
            temperature=self.temperature,
            careless=0.5 if careless else 0.0,
        )


def _direction(rng: np.random.Generator, n: int) -> np.ndarray:
    """Random unit vector."""
    vector = rng.standard_normal(n)
    return vector / np.linalg.norm(vector)
