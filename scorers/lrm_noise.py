"""Noise levels at which a scorer of latents learns, and how a network is told the time."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class NoiseLevels:
    """A grid of T noise levels: x_t = signal * x0 + noise * n. Each is drawn with the same probability."""

    times: Tensor
    """(T,) times as the denoiser takes them: the index of a VP process, 1000 sigma of a flow."""
    signal: Tensor
    """(T,) factors of the clean latents."""
    noise: Tensor
    """(T,) factors of the noise."""

    def __post_init__(self) -> None:
        """Check the shapes."""
        shapes = {tuple(x.shape) for x in (self.times, self.signal, self.noise)}
        if len(shapes) > 1 or self.times.ndim != 1 or not len(self.times):
            raise ValueError(f"times, signal and noise must be (T,) with one level or more, got {shapes}")

    @classmethod
    def vp(cls, alphas_cumprod: Tensor, times: Iterable[int] = range(1, 1000, 50)) -> NoiseLevels:
        """Levels of a variance-preserving process; the default is LPO's 1, 51, ..., 951 (arXiv:2502.01051).

        Args:
            alphas_cumprod: (N,) cumulative alphas of the scheduler.
            times: indices into them.

        Raises:
            ValueError: an index outside [0, N), or none at all.
        """
        index = torch.tensor(list(times), dtype=torch.long)
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(alphas_cumprod):
            raise ValueError(f"timesteps must lie in [0, {len(alphas_cumprod)}), got {index.tolist()}")
        kept = alphas_cumprod.float().cpu()[index]
        return cls(times=index, signal=kept.sqrt(), noise=(1 - kept).sqrt())

    @classmethod
    def flow(cls, sigmas: Iterable[float]) -> NoiseLevels:
        """Levels sigma of a rectified flow, x_sigma = (1 - sigma) x0 + sigma n.

        Raises:
            ValueError: a sigma outside [0, 1], or none at all.
        """
        sigma = torch.tensor(list(sigmas), dtype=torch.float32)
        if len(sigma) and not 0 <= float(sigma.min()) <= float(sigma.max()) <= 1:
            raise ValueError(f"sigmas must lie in [0, 1], got {sigma.tolist()}")
        return cls(times=1000 * sigma, signal=1 - sigma, noise=sigma)

    def add_noise(self, x0: Tensor, n: Tensor, rows: Tensor) -> Tensor:
        """(B, C, h, w) latents at the levels ``rows`` (B,), of clean latents and noise of that shape."""
        signal, noise = (v.to(x0)[rows.to(x0.device)][:, None, None, None] for v in (self.signal, self.noise))
        return signal * x0 + noise * n


def time_features(times: Tensor, width: int) -> Tensor:
    """(B, width) float32 cosines and sines of (B,) times in [0, 1000], periods from 2 pi to 20,000 pi.

    The timestep embedding of diffusion models (arXiv:2006.11239).

    Raises:
        ValueError: an odd width.
    """
    if width % 2:
        raise ValueError(f"the width of time features must be even, got {width}")
    k = torch.arange(width // 2, device=times.device, dtype=torch.float32)
    angle = times.float()[:, None] * torch.exp(-math.log(10_000) * k / (width // 2))
    return torch.cat([angle.cos(), angle.sin()], 1)
