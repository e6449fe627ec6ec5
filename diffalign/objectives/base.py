"""What every objective is: a frozen dataclass whose fields are its YAML block and whose ``loss`` is
mathematics.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from diffalign.registry import Registry

DataKind = Literal["pairs", "labels", "ranking", "winners"]
Metrics = dict[str, Tensor]
ReduceMean = Callable[[Tensor], Tensor]
State = MutableMapping[str, Tensor]


@dataclass(kw_only=True)
class Predictions:
    """Prediction tensors, each (N, C, ..., H, W), for the few objectives that declare that they need them."""

    pred: Tensor
    ref_pred: Tensor | None
    target: Tensor
    x_t: Tensor
    x0: Tensor
    old_pred: Tensor | None = None

    def __post_init__(self) -> None:
        """Cut what is not trained off the graph, whoever computed it."""
        self.ref_pred = _detached(self.ref_pred)
        self.old_pred = _detached(self.old_pred)


@dataclass(kw_only=True)
class Denoised:
    """Denoising errors of N images: the input of every offline and forward-process objective."""

    error: Tensor
    """(N,) policy error, differentiable."""
    ref_error: Tensor | None
    """(N,) reference error, no gradient; None when the objective needs no reference."""
    group: Tensor
    """(N,) int64; rows with the same number are one comparison unit (pair or list)."""
    role: Tensor
    """(N,) int64; +1 preferred or liked, -1 dispreferred or disliked, 0 tie or unknown."""
    t: Tensor
    """(N,) timestep."""
    t_weight: Tensor | None = None
    """(N,) w(t), multiplies the error gap inside the objective."""
    score: Tensor | None = None
    """(N,) label scores of a ranking, or an advantage."""
    soft: Tensor | None = None
    """(N,) probability that this row beats its partner."""
    margin: Tensor | None = None
    """(N,) margin asked of the row's pair."""
    weight: Tensor | None = None
    """(N,) sample weight, used by the trainer."""
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    """Further (N, ...) tensors that single objectives declare."""
    tensors: Predictions | None = None
    """Predictions, only for objectives that declare them."""
    unit_count: int | None = None
    """Number of comparison units, where the host knows it: lists are then cut without waiting for the
    device.
    """

    def __post_init__(self) -> None:
        """Cut the reference off the graph: no objective can send it a gradient by mistake."""
        self.ref_error = _detached(self.ref_error)

    def gap(self) -> Tensor:
        """(N,) error gaps w(t) a = w(t) (e_policy - e_reference); the weighted error without a reference."""
        gap = self.error if self.ref_error is None else self.error - self.ref_error
        return gap if self.t_weight is None else self.t_weight * gap

    def counted(self) -> Tensor:
        """(N,) 1 at rows that statistics of the batch are made of, 0 at those of weight 0: they stand in for
        rows that a process does not have.
        """
        ones = torch.ones_like(self.error)
        return ones if self.weight is None else ones * (self.weight != 0)


@dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """Base of all objectives. Subclasses declare what they need and compute one loss per comparison unit."""

    paper: ClassVar[str]
    """Where the method is from."""
    data: ClassVar[DataKind]
    """What the loader must give."""
    needs_reference: ClassVar[bool] = True
    """Whether the trainer must run the reference."""
    needs: ClassVar[frozenset[str]] = frozenset()
    """Optional fields of Denoised that must be filled. Where it hangs on an option the instance has its own:
    ask the instance, not the class.
    """
    coupled: ClassVar[bool] = False
    """True where the loss of a unit depends on other units of the batch; ask the instance, as above."""

    @abstractmethod
    def loss(
        self, batch: Denoised, reduce_mean: ReduceMean = lambda x: x, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        """Return (U,) losses, one per comparison unit and never reduced, and (U,) metrics.

        A metric is NaN at units that have no such figure (the gap of a winner at a disliked image).

        Args:
            batch: errors of N rows.
            reduce_mean: mean of a tensor over all processes, for coupled objectives.
            state: running statistics that the checkpoint keeps.
        """

    def units(self, batch: Denoised, values: Tensor) -> Tensor:
        """Bring (N,) row values to the (U,) units of this objective's loss (the mean over a unit's rows)."""
        return values

    def _require(self, holds: bool, option: str, must: str) -> None:
        """Raise ValueError on a wrong option, by its registered name; ``must`` ends "it must be ..."."""
        if not holds:
            value = getattr(self, option)
            raise ValueError(f"{name_of(type(self))}.{option} is {value}; it must be {must}")

    def _declare(self, *, needs: frozenset[str] | None = None, coupled: bool | None = None) -> None:
        """Give this instance its own ``needs`` or ``coupled``, where an option decides them."""
        if needs is not None:
            object.__setattr__(self, "needs", needs)
        if coupled is not None:
            object.__setattr__(self, "coupled", coupled)


objectives: Registry[type[Objective]] = Registry("objective", package="diffalign.objectives")
"""All objectives by name; found by scanning this folder."""


def names() -> list[str]:
    """Names of all registered objectives."""
    return objectives.names()


def name_of(cls: type[Any]) -> str:
    """Registered name of an objective's class, or ``module:Class`` where it has none."""
    found = [n for n in names() if objectives.get(n) is cls]
    return found[0] if found else f"{cls.__module__}:{cls.__qualname__}"


def build(name: str, /, **options: Any) -> Objective:
    """Make the objective called ``name`` (or ``package.module:Class``) with its options.

    Raises:
        RegistryError: no objective has this name; the message suggests the nearest.
        TypeError: an option that this objective does not have; the message lists those it has.
    """
    cls = objectives.get(name)
    if not is_dataclass(cls):
        raise TypeError(f"objective {name!r} must be a dataclass")
    known = [f.name for f in fields(cls)]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise TypeError(
            f"objective {name!r} has no option {unknown[0]!r}; it takes {', '.join(known) or 'none'}"
        )
    return cls(**options)


def _detached(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.detach()
