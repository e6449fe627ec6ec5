"""Noise-conditioned perception (NCP): distance in the features of the frozen UNet's encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from diffalign.diffusion.corrupt import Corrupted, draw_seed, seeded_noise
from diffalign.diffusion.process import Prediction, Process
from diffalign.diffusion.spaces import BoundSpace, Cond, Maps, Space, TruthOnce, native_error, spaces, wide

if TYPE_CHECKING:
    from diffalign.policy.base import Policy

Encode = Callable[[Tensor, Tensor, Cond, Tensor | None], Maps]
"""(x, t, conditioning, sizes) to feature maps."""


class UNetFeatureError(TruthOnce):
    """P = mean over maps of |f(y(n_hat), c, t - 1) - f(y(n), c, t - 1)|^2 / coefficient^2."""

    def __init__(self, process: Process, encode: Encode, normalise: bool) -> None:
        """``encode`` is frozen."""
        super().__init__()
        self.process, self.encode, self.normalise = process, encode, normalise

    def error(self, pred: Tensor, noisy: Corrupted, cond: Cond, sizes: Tensor | None = None) -> Tensor:
        """See BoundSpace."""
        truth, seen = self.truth(noisy, cond, sizes), self.maps(pred, noisy, cond, sizes)
        each = [native_error(f, g) for f, g in zip(seen, truth, strict=True)]
        error = torch.stack(each).mean(0)
        if self.normalise:
            error = error / ancestral_step(self.process, noisy.t)[1].square().to(error.dtype)
        return torch.where(noisy.t > 0, error, torch.zeros_like(error))  # there is no time before 0

    def maps(self, pred: Tensor, noisy: Corrupted, cond: Cond, sizes: Tensor | None) -> Maps:
        """Features at the previous time, reached with the noise that a prediction implies."""
        kept, coefficient, std = (wide(v, pred) for v in ancestral_step(self.process, noisy.t))
        n = self.process.convert(noisy.target, noisy.x_t, noisy.t, "eps")
        slope = wide(self.process.eps_slope(noisy.t), pred)
        true = kept * noisy.x_t - coefficient * n + std * self.zeta(noisy)
        y = true - coefficient * slope * (pred - noisy.target)
        return self.encode(y, (noisy.t - 1).clamp(min=0), cond, sizes)

    def zeta(self, noisy: Corrupted) -> Tensor:
        """Noise of the step: one for truth, policy and reference, and for all images of a unit."""
        return seeded_noise([draw_seed("ancestral", u) for u in noisy.units], noisy.x_t)


def ancestral_step(process: Process, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(N,) factors of a DDPM step t -> t - 1: y = f0 x_t - f1 eps + f2 zeta (arXiv:2006.11239, eq. 11).

    f0 = 1 / sqrt(alpha_t), f1 = beta_t / sqrt(alpha_t (1 - abar_t)), f2 = sqrt(beta_t (1 - abar_{t-1}) /
    (1 - abar_t)), the small fixed variance. t = 0 is read as 1.
    """
    t = t.clamp(min=1)
    (a, s), (a_before, s_before) = process.coefficients(t), process.coefficients(t - 1)
    root = a / a_before  # sqrt(alpha_t)
    beta = 1 - root.square()
    return 1 / root, beta / (root * s), beta.sqrt() * s_before / s


@spaces.register("unet_features")
@dataclass(frozen=True, kw_only=True)
class UNetFeatures(Space):
    """NCP (arXiv:2406.17636, eq. 12 to 18): features of conv_in and down blocks at the previous timestep.

    One DDPM step with the true and with the predicted noise, the same fresh noise in all, then the mean
    squared distance of the features; the mean over each map, and over maps. Published for eps models; v and
    x0 predictions are turned into eps (derived). Rows at t = 0 have error 0. The features are those of the
    base without the trained LoRA, always in fp32 at least: a step moves the latents by less than bf16
    resolves.
    """

    derived: ClassVar[frozenset[Prediction]] = frozenset({"v", "x0"})
    unit: ClassVar[Literal["native", "eps", "own"]] = "eps"

    name: Literal["unet_features"] = "unet_features"
    maps: Literal["all", "last"] = "all"
    """all: outputs of conv_in and of every down block; last: of the last down block only."""
    normalise: bool = True
    """Divide by the square of the step's coefficient (about 1e-4): beta is then as for eps errors."""

    def bind(self, policy: Policy) -> BoundSpace:
        """See Space."""
        from diffalign.policy.features import FrozenFeatures, encoder_parts

        if policy.process.is_flow:
            raise ValueError(
                "space unet_features takes a DDPM step, and this is a flow model: use dit_features"
            )
        parts = encoder_parts(policy)
        watched = parts.watched if self.maps == "all" else parts.watched[-1:]
        return UNetFeatureError(policy.process, FrozenFeatures(policy, watched, parts.unused), self.normalise)
