"""What an error is: the space in which a prediction is compared with its target.

A ``Space`` is what a recipe says; ``bind`` ties it to a policy, once, and the ``BoundSpace`` turns
predictions of policy and reference into one number per row. A new space is one file in this folder that
registers itself.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from diffalign.diffusion.corrupt import Corrupted
from diffalign.diffusion.process import Prediction
from diffalign.registry import Registry

if TYPE_CHECKING:
    from diffalign.policy.base import Policy

Maps = tuple[Tensor, ...]
"""Feature maps of N rows, each (N, ...)."""
Cond = dict[str, Tensor]


def squared_error(pred: Tensor, target: Tensor) -> Tensor:
    """Squared error of each element, in the shape of ``pred``.

    Half-precision inputs are raised to fp32 first (a sum of 16,384 squares in bf16 keeps two digits); float64
    stays.
    """
    wide = pred if pred.element_size() >= 4 else pred.float()
    return (wide - target.to(wide.dtype)).square()


def native_error(pred: Tensor, target: Tensor) -> Tensor:
    """(N,) mean squared error over all elements of (N, C, ..., H, W) predictions; see squared_error."""
    return squared_error(pred, target).flatten(1).mean(1)


class BoundSpace(ABC):
    """A space of one policy. What it takes from the policy is frozen: gradients reach the prediction only."""

    @abstractmethod
    def error(self, pred: Tensor, noisy: Corrupted, cond: Cond, sizes: Tensor | None = None) -> Tensor:
        """(N,) errors, differentiable in ``pred``; call it under no_grad for the reference.

        Args:
            pred: (N, C, ..., H, W) native predictions of policy or reference.
            noisy: what they were made of.
            cond: conditioning of the rows, as ``policy.predict`` takes it.
            sizes: (N, 6) sizes of the images, for SDXL.
        """


@dataclass(frozen=True, kw_only=True)
class Space(ABC):
    """Options of a space. Subclasses have a ``name``."""

    derived: ClassVar[frozenset[Prediction]] = frozenset()
    """Kinds of models for which the form here is derived: published for others only."""
    unit: ClassVar[Literal["native", "eps", "own"]] = "own"
    """What errors measure; w(t) that converts native errors (eps_equivalent, ...) is for native ones."""

    @abstractmethod
    def bind(self, policy: Policy) -> BoundSpace:
        """Make the space of a policy; after ``policy.to`` and ``policy.set_reference``, once for a run.

        Raises:
            ValueError: the model cannot have this space; says which one fits.
        """


spaces: Registry[type[Space]] = Registry("space", package="diffalign.diffusion")
"""All spaces by name; found by scanning this folder."""


class NativeError(BoundSpace):
    """Mean squared error of the prediction itself."""

    def error(self, pred: Tensor, noisy: Corrupted, cond: Cond, sizes: Tensor | None = None) -> Tensor:
        """See BoundSpace."""
        return native_error(pred, noisy.target)


@spaces.register("native")
@dataclass(frozen=True, kw_only=True)
class Native(Space):
    """What the network predicts: eps, v or velocity."""

    unit: ClassVar[Literal["native", "eps", "own"]] = "native"

    name: Literal["native"] = "native"

    def bind(self, policy: Policy) -> BoundSpace:
        """See Space."""
        return NativeError()


class TruthOnce(BoundSpace):
    """A space of maps whose truth serves policy and reference alike: it is made once for each batch."""

    def __init__(self) -> None:
        """Start without a batch."""
        self._batch: weakref.ref[Corrupted] | None = None
        self._seen: tuple[Cond, Maps] | None = None

    @abstractmethod
    def maps(self, pred: Tensor, noisy: Corrupted, cond: Cond, sizes: Tensor | None) -> Maps:
        """Maps of a prediction."""

    def truth(self, noisy: Corrupted, cond: Cond, sizes: Tensor | None) -> Maps:
        """Maps of the target, without gradient; kept for as long as the batch ``noisy`` lives."""
        known = self._seen is not None and self._seen[0] is cond
        if self._seen is None or not known or self._batch is None or self._batch() is not noisy:
            with torch.no_grad():
                self._seen = (cond, self.maps(noisy.target, noisy, cond, sizes))
            self._batch = weakref.ref(noisy, self._forget)
        return self._seen[1]

    def _forget(self, gone: weakref.ref[Corrupted]) -> None:
        if gone is self._batch:
            self._batch = self._seen = None


def wide(values: Tensor, like: Tensor) -> Tensor:
    """(N,) values in the dtype and shape that multiply rows of ``like``."""
    return values.to(like.dtype).view(-1, *(1,) * (like.ndim - 1))
