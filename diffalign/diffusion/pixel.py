"""Pixel space: decode the noisy latents, once with the true noise and once with the predicted one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from diffalign.diffusion.corrupt import Corrupted
from diffalign.diffusion.process import Prediction, Process
from diffalign.diffusion.spaces import BoundSpace, Cond, Maps, Space, TruthOnce, native_error, spaces, wide

if TYPE_CHECKING:
    from diffalign.policy.base import Policy

Decode = Callable[[Tensor], Tensor]


class PixelError(TruthOnce):
    """p = mean over pixels of (D(a x0 + s n) - D(a x0 + s n_hat))^2."""

    def __init__(self, process: Process, decode: Decode, chunk: int) -> None:
        """``decode`` turns scaled latents into pixels, differentiably and without random numbers."""
        super().__init__()
        self.process, self.decode, self.chunk = process, decode, chunk

    def error(self, pred: Tensor, noisy: Corrupted, cond: Cond, sizes: Tensor | None = None) -> Tensor:
        """See BoundSpace."""
        (truth,), (seen,) = self.truth(noisy, cond, sizes), self.maps(pred, noisy, cond, sizes)
        return native_error(seen, truth)

    def maps(self, pred: Tensor, noisy: Corrupted, cond: Cond, sizes: Tensor | None) -> Maps:
        """(N, 3, H, W) pixels of the noisy latents with the noise that a prediction implies."""
        _, s = self.process.coefficients(noisy.t)
        slope = wide(s * self.process.eps_slope(noisy.t), pred)
        latents = noisy.x_t + slope * (pred - noisy.target)
        return (torch.cat([checkpointed(self.decode, rows) for rows in latents.split(self.chunk)]),)


def checkpointed(function: Callable[..., Tensor], *rows: Tensor) -> Tensor:
    """``function(*rows)``, keeping nothing but its inputs for the backward pass, which computes it again."""
    from torch.utils.checkpoint import checkpoint

    if not (torch.is_grad_enabled() and any(r.requires_grad for r in rows)):
        return function(*rows)
    out: Tensor = checkpoint(function, *rows, use_reentrant=False, preserve_rng_state=False)
    return out


@spaces.register("pixel")
@dataclass(frozen=True, kw_only=True)
class Pixel(Space):
    """Distance of decoded noisy latents at the current t (arXiv:2409.17565, eq. 5 to 7).

    Means over pixels where the paper sums. Not x0_hat is decoded, which blurs at large t. Published for eps
    models; of v, x0 and flow models the predicted noise is the one that the prediction implies (derived).
    """

    derived: ClassVar[frozenset[Prediction]] = frozenset({"v", "x0", "flow"})

    name: Literal["pixel"] = "pixel"
    chunk: int = 4
    """Images decoded at once; the backward pass holds the decoder's activations of so many."""

    def __post_init__(self) -> None:
        """Check the range."""
        if self.chunk < 1:
            raise ValueError(f"chunk is {self.chunk}; it must be at least 1")

    def bind(self, policy: Policy) -> BoundSpace:
        """See Space."""
        from diffalign.policy.features import FrozenDecoder

        return PixelError(policy.process, FrozenDecoder(policy).pixels, self.chunk)
