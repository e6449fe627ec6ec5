"""Latent perceptual loss (LPL): distance in the feature maps of the VAE's decoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from diffalign.diffusion.corrupt import Corrupted
from diffalign.diffusion.pixel import checkpointed
from diffalign.diffusion.process import Prediction, Process
from diffalign.diffusion.spaces import BoundSpace, Cond, Maps, Space, spaces

if TYPE_CHECKING:
    from diffalign.policy.base import Policy


class DecoderFeatureError(BoundSpace):
    """sum_b w_b mean (rho (F_b(x0) - F_b(x0_hat)))^2 where SNR(t) >= tau, else 0."""

    def __init__(self, options: DecoderFeatures, process: Process, maps: Callable[[Tensor], Maps]) -> None:
        """``maps`` gives the decoder's up-block outputs, coarsest first, of scaled latents."""
        self.options, self.process, self.maps = options, process, maps

    def error(self, pred: Tensor, noisy: Corrupted, cond: Cond, sizes: Tensor | None = None) -> Tensor:
        """See BoundSpace."""
        a, s = self.process.coefficients(noisy.t)
        counts = (a / s).square() >= self.options.min_snr  # (N,)
        # x0_hat of the other rows may not exist (a = 0), so that they are read at a harmless time
        t = torch.where(counts, noisy.t, torch.full_like(noisy.t, 0.5 if self.process.is_flow else 0))
        seen = self.process.convert(pred, noisy.x_t, t, "x0")
        with torch.no_grad():
            true = self.process.convert(noisy.target, noisy.x_t, t, "x0")
        pieces = zip(seen.split(self.options.chunk), true.split(self.options.chunk), strict=True)
        error = torch.cat([checkpointed(self._distance, *piece) for piece in pieces])
        return torch.where(counts, error, torch.zeros_like(error))

    def _distance(self, seen: Tensor, true: Tensor) -> Tensor:
        """(n,) distances of (n, C, h, w) clean latents."""
        with torch.no_grad():
            truth = self.maps(true)
        first = truth[0].shape[-1]
        each = [
            feature_distance(f, g, self.options.outlier) * (first / f.shape[-1])
            for f, g in zip(self.maps(seen), truth, strict=True)
        ]
        return torch.stack(each).sum(0)


def feature_distance(seen: Tensor, true: Tensor, outlier: float) -> Tensor:
    """(n,) mean squared distance of (n, C, h, w) maps, standardised by each channel of the truth.

    Elements where the truth is more than ``outlier`` standard deviations from its channel's mean are left
    out: decoders have a few huge activations, which would be all that counts.
    """
    f, g = (v if v.element_size() >= 4 else v.float() for v in (seen, true))
    std, mean = torch.std_mean(g, dim=(2, 3), keepdim=True, correction=0)
    floor = torch.finfo(g.dtype).eps * mean.abs() + 1e-6  # a constant channel says nothing
    kept = (g - mean).abs() <= outlier * std
    return (kept * ((f - g) / (std + floor)).square()).flatten(1).mean(1)


@spaces.register("decoder_features")
@dataclass(frozen=True, kw_only=True)
class DecoderFeatures(Space):
    """Latent perceptual loss between x0 and x0_hat (LPL, arXiv:2411.04873).

    Means over positions where the paper sums, so that the value does not hang on the resolution; the weight
    of a block is the inverse of its resolution over the first block's (1, 1/2, 1/4, ...). x0_hat comes from
    any kind of prediction, as published. Rows that are too noisy have error 0 and no gradient.
    """

    derived: ClassVar[frozenset[Prediction]] = frozenset()

    name: Literal["decoder_features"] = "decoder_features"
    min_snr: float = 1 / 9
    """Least a^2 / s^2 at which a row counts; the paper's noise scales of 3 to 6 are 1/9 to 1/36."""
    outlier: float = 5.0
    """Standard deviations from the mean of its channel beyond which an element is left out."""
    chunk: int = 4
    """Images decoded at once; the backward pass holds the decoder's activations of so many."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not (self.min_snr > 0 and self.outlier > 0 and self.chunk >= 1):
            raise ValueError(
                f"min_snr, outlier and chunk are {self.min_snr}, {self.outlier} and {self.chunk}; "
                "all must be above 0"
            )

    def bind(self, policy: Policy) -> BoundSpace:
        """See Space."""
        from diffalign.policy.features import FrozenDecoder

        return DecoderFeatureError(self, policy.process, FrozenDecoder(policy).maps)
