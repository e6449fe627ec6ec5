"""Noise-conditioned perception for transformers: distance in the features of the frozen first blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from diffalign.diffusion.corrupt import Corrupted
from diffalign.diffusion.process import Prediction, Process
from diffalign.diffusion.spaces import BoundSpace, Cond, Maps, Space, TruthOnce, native_error, spaces, wide
from diffalign.diffusion.unet_features import Encode

if TYPE_CHECKING:
    from diffalign.policy.base import Policy


class DiTFeatureError(TruthOnce):
    """P = mean over maps of |f(x - d v_hat, c, t - d) - f(x - d v, c, t - d)|^2 / d^2."""

    def __init__(self, process: Process, encode: Encode, options: DiTFeatures) -> None:
        """``encode`` is frozen."""
        super().__init__()
        self.process, self.encode, self.options = process, encode, options

    def error(self, pred: Tensor, noisy: Corrupted, cond: Cond, sizes: Tensor | None = None) -> Tensor:
        """See BoundSpace."""
        truth, seen = self.truth(noisy, cond, sizes), self.maps(pred, noisy, cond, sizes)
        each = [native_error(f, g) for f, g in zip(seen, truth, strict=True)]
        if not self.options.normalise:
            return torch.stack(each).mean(0)
        step = noisy.t.clamp(max=self.options.step)
        y = noisy.x_t - wide(step, noisy.x_t) * noisy.target
        gains = [mean_square(y) / mean_square(g) / step.square() for g in truth]
        return torch.stack([e * gain for e, gain in zip(each, gains, strict=True)]).mean(0)

    def maps(self, pred: Tensor, noisy: Corrupted, cond: Cond, sizes: Tensor | None) -> Maps:
        """Features after an Euler step towards the picture with a predicted velocity."""
        step = noisy.t.clamp(max=self.options.step)
        d = wide(step, pred)
        y = noisy.x_t - d * noisy.target - d * (pred - noisy.target)
        return self.encode(y, noisy.t - step, cond, sizes)


def mean_square(rows: Tensor) -> Tensor:
    """(N,) mean squares of (N, ...) rows."""
    return native_error(rows, torch.zeros_like(rows))


@spaces.register("dit_features")
@dataclass(frozen=True, kw_only=True)
class DiTFeatures(Space):
    """NCP (arXiv:2406.17636) for flow transformers, which its authors did not try: derived.

    One Euler step of length d with the true and with the predicted velocity, then the mean squared distance
    of the image tokens after the first blocks. Frozen, and in fp32 at least, as in unet_features.
    """

    derived: ClassVar[frozenset[Prediction]] = frozenset({"flow"})
    unit: ClassVar[Literal["native", "eps", "own"]] = "native"

    name: Literal["dit_features"] = "dit_features"
    blocks: int = 0
    """First blocks whose outputs count; 0 takes a third of all, at least one."""
    step: float = 0.02
    """Length d of the Euler step, as a share of the whole time; shorter where less time is left."""
    normalise: bool = True
    """Divide by d^2 and by the mean square of each map over that of the latents, so that errors are about as
    large as those of the velocity, whatever the scale of hidden states, and beta is comparable.
    """

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.blocks < 0 or not 0 < self.step < 1:
            raise ValueError(
                f"blocks is {self.blocks} and step {self.step}; blocks must be at least 0 and step in (0, 1)"
            )

    def bind(self, policy: Policy) -> BoundSpace:
        """See Space."""
        from diffalign.policy.features import FrozenFeatures, block_parts

        if not policy.process.is_flow:
            raise ValueError(
                "space dit_features takes a step of a flow model, and this is none: use unet_features"
            )
        parts = block_parts(policy, self.blocks)
        return DiTFeatureError(policy.process, FrozenFeatures(policy, parts.watched, parts.unused), self)
