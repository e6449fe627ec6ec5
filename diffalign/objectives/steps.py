"""Batches of online methods, and what every objective on them is.

Step-level and ratio methods see ``Steps``: log-probabilities of recorded denoising steps. Forward-process
methods (DiffusionNFT, AWM, DGPO, CRD) see the pictures that came out, noised again: ``Denoised`` with the
advantage as ``score`` and the predictions in ``tensors``. Online objectives have a registry of their own:
their batches come from rollouts and not from a data set. The signature of the loss, its units and
metrics are those of the offline ones.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar

from torch import Tensor

from diffalign.objectives.base import Denoised, Metrics, ReduceMean, State
from diffalign.registry import Registry

BatchKind = Literal["steps", "rollouts", "pairs"]
Unit = Literal["row", "pair", "group"]


@dataclass(kw_only=True)
class Steps:
    """N recorded denoising steps x_t -> x' under policy, behaviour policy and reference.

    Squares of differences are means over the elements of a latent, as log-probabilities are.
    """

    logp: Tensor
    """(N,) log-probability of the recorded x' under the policy, differentiable."""
    group: Tensor
    """(N,) int64; rows with the same number are one unit: two sides of a pair, or the images of a prompt."""
    role: Tensor
    """(N,) int64; +1 preferred, -1 dispreferred, 0 where advantages say it."""
    old_logp: Tensor | None = None
    """(N,) under the policy that made the rollout."""
    ref_logp: Tensor | None = None
    """(N,) under the reference."""
    advantage: Tensor | None = None
    """(N,) advantage of the row's image."""
    drift: Tensor | None = None
    """(N,) <(mean - mean_old)^2>, differentiable."""
    ref_drift: Tensor | None = None
    """(N,) <(mean - mean_ref)^2>, differentiable."""
    pred_drift: Tensor | None = None
    """(N,) <(pred - pred_ref)^2> of the predictions without guidance, differentiable."""
    std: Tensor | None = None
    """(N,) standard deviation of the step, with sqrt(dt) in it."""
    sqrt_dt: Tensor | None = None
    """(N,) sqrt(sigma - sigma') of an SDE's step; 1 where the transition is none (see ``samplers.Step``)."""
    step: Tensor | None = None
    """(N,) int64 step of the schedule, 0 the noisiest."""
    image: Tensor | None = None
    """(N,) int64; rows with the same number are steps of one image."""
    unit_count: int | None = None
    """Number of groups, where the host knows it: they are then told apart without waiting for the device."""
    weight: Tensor | None = None
    """(N,) sample weight, used by the trainer; a correction for rollout engines that differ goes here too."""

    def __post_init__(self) -> None:
        """Cut what is not trained off the graph, whoever computed it."""
        for name in ("old_logp", "ref_logp", "advantage", "std", "sqrt_dt"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else value.detach())


Batch = TypeVar("Batch", Steps, Denoised)


@dataclass(frozen=True, kw_only=True)
class OnlineObjective(ABC, Generic[Batch]):
    """Base of all objectives on rollouts. Its fields are its YAML block, as those of ``Objective`` are."""

    paper: ClassVar[str]
    """Where the method is from."""
    batch: ClassVar[BatchKind]
    """What it sees. ``steps`` needs stochastic steps, and in training the guidance of the rollout;
    ``rollouts`` are pictures noised again; ``pairs`` are such pictures put into comparison units."""
    unit: ClassVar[Unit] = "row"
    """What has a loss of its own."""
    needs_reference: ClassVar[bool] = False
    """Whether the trainer must run the reference; where an option decides it, ask the instance."""
    needs: ClassVar[frozenset[str]] = frozenset()
    """Optional fields of the batch, or keys of its ``extra``, that must be filled; ask the instance."""
    whole_groups: ClassVar[bool] = False
    """True where the rows of a prompt must come in one batch, all of them and on one process."""

    @abstractmethod
    def loss(
        self, batch: Batch, reduce_mean: ReduceMean = lambda x: x, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        """(U,) losses, one per unit and never reduced, and (U,) metrics; see ``Objective.loss``.

        Raises:
            ValueError: the batch lacks what ``needs`` names.
        """

    def units(self, batch: Batch, values: Tensor) -> Tensor:
        """Bring (N,) row values to the (U,) units of the loss."""
        return values

    def guidance_of_reference(self) -> float:
        """Guidance of ``tensors.ref_pred``; 1 is none. Elsewhere there are no errors of the reference."""
        return 1.0

    def _require(self, holds: bool, option: str, must: str) -> None:
        """Raise ValueError on a wrong option, by its registered name; ``must`` ends "it must be ..."."""
        if not holds:
            value = getattr(self, option)
            raise ValueError(f"{online_name_of(type(self))}.{option} is {value}; it must be {must}")

    def _declare(self, *, needs: frozenset[str], needs_reference: bool) -> None:
        """Give this instance its own declarations, where an option decides them."""
        object.__setattr__(self, "needs", needs)
        object.__setattr__(self, "needs_reference", needs_reference)


StepObjective = OnlineObjective[Steps]
RolloutObjective = OnlineObjective[Denoised]

online_objectives: Registry[type[OnlineObjective[Any]]] = Registry(
    "online objective", package="diffalign.objectives"
)
"""All online objectives by name; found by scanning this folder."""


def online_names() -> list[str]:
    """Names of all registered online objectives."""
    return online_objectives.names()


def online_name_of(cls: type[Any]) -> str:
    """Registered name of an online objective's class, or ``module:Class`` where it has none."""
    found = [n for n in online_names() if online_objectives.get(n) is cls]
    return found[0] if found else f"{cls.__module__}:{cls.__qualname__}"


def build_online(name: str, /, **options: Any) -> OnlineObjective[Any]:
    """Make the online objective called ``name`` (or ``package.module:Class``) with its options.

    Raises:
        RegistryError: no online objective has this name; the message suggests the nearest.
        TypeError: an option that it does not have; the message lists those it has.
    """
    cls = online_objectives.get(name)
    if not is_dataclass(cls):
        raise TypeError(f"online objective {name!r} must be a dataclass")
    known = [f.name for f in fields(cls)]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise TypeError(
            f"online objective {name!r} has no option {unknown[0]!r}; it takes {', '.join(known) or 'none'}"
        )
    return cls(**options)


def given(value: Tensor | None, name: str, why: str) -> Tensor:
    """The field of a batch.

    Raises:
        ValueError: it is missing.
    """
    if value is None:
        raise ValueError(f"the batch has no {name}, {why}")
    return value
