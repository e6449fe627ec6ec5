"""Variance-preserving diffusion and rectified flow behind one interface.

Both write x_t = a(t) x0 + s(t) n; a model may predict eps (n), x0, v (a n - s x0) or flow velocity (n - x0).
Every prediction is linear in (x0, n), so each converts to every other (spec 0.2; k-diffusion's idea of one
meaning).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffalign.diffusion.discount import temporal_discount

Prediction = Literal["eps", "x0", "v", "flow"]
WeightName = Literal["one", "eps_equivalent", "x0_equivalent", "snr", "min_snr", "sigmoid", "discount"]


@dataclass(frozen=True, kw_only=True)
class Process:
    """How pictures become noise, and what the model predicts of it."""

    prediction: Prediction
    """What the network returns."""
    alphas_cumprod: Tensor | None = None
    """(T,) cumulative alphas of a VP process, where training runs; None for rectified flow."""

    @property
    def is_flow(self) -> bool:
        """Whether this is rectified flow (t is sigma in (0, 1]) rather than VP (t is an integer below T)."""
        return self.alphas_cumprod is None

    @property
    def steps(self) -> int:
        """Number of training timesteps: T, or 1000 for flow (the scale of its model time)."""
        return 1000 if self.alphas_cumprod is None else len(self.alphas_cumprod)

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) signal a(t) and noise s(t) at (B,) times."""
        if self.alphas_cumprod is None:
            return 1 - t, t
        alpha_bar = self.alphas_cumprod.to(t.device)[t]
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def model_time(self, t: Tensor) -> Tensor:
        """(B,) time as the network takes it: the index, or 1000 sigma."""
        return t * 1000 if self.is_flow else t

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t of shape (B, C, ..., H, W) at (B,) times."""
        a, s = self._wide(t, x0)
        return a * x0 + s * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What a perfect model would predict, (B, C, ..., H, W)."""
        return self._form(self.prediction, x0, noise, t)

    def convert(self, pred: Tensor, x_t: Tensor, t: Tensor, to: Prediction) -> Tensor:
        """Turn a prediction of this process's kind into another kind; (B, C, ..., H, W)."""
        if to == self.prediction:
            return pred
        x0, noise = self._solve(pred, x_t, t)
        return self._form(to, x0, noise, t)

    def eps_slope(self, t: Tensor) -> Tensor:
        """(B,) derivative of the implied eps: eps(pred) - eps(target) = slope (pred - target).

        1 for eps, a for v, -a / s for x0, and 1 - sigma for flow.
        """
        a, s = self.coefficients(t)
        slopes = {"eps": torch.ones_like(a), "x0": -a / s, "v": a, "flow": a / (a + s)}
        return slopes[self.prediction]

    def weight(self, t: Tensor, name: WeightName, gamma: float | None = None, b: float = 0.0) -> Tensor:
        """(B,) factor w(t) on native errors.

        Args:
            t: (B,) times.
            name: ``eps_equivalent`` and ``x0_equivalent`` make them errors of eps and of x0. ``snr`` and
                ``min_snr`` weigh errors of x0 by the signal-to-noise ratio, the latter cut at ``gamma``
                (arXiv:2303.09556). ``sigmoid`` weighs errors of eps by sigmoid(b - log SNR)
                (arXiv:2303.00848). ``discount`` weighs native errors by 50 gamma^k / sum_j gamma^j, with k
                the denoising step of 50 that t falls into, 0 the noisiest (arXiv:2402.08265): early steps
                count more, and the mean over uniform t is 1.
            gamma: cut of min_snr (5 where none is given) or discount (0.9).
            b: shift of sigmoid in log SNR.
        """
        a, s = self.coefficients(t)
        if name == "one":
            return torch.ones_like(a)
        if name == "discount":
            return temporal_discount(t, 0.9 if gamma is None else gamma, timesteps=self.steps).to(a.dtype)
        eps_weight, snr = self.eps_slope(t).square(), (a / s).square()
        if name == "sigmoid":
            return eps_weight * torch.sigmoid(b - snr.log())
        if name in ("eps_equivalent", "snr"):  # the eps error is SNR times the x0 error
            return eps_weight
        x0_weight = self._x0_weight(a, s)
        if name == "x0_equivalent":
            return x0_weight
        return x0_weight * snr.clamp(max=5.0 if gamma is None else gamma)

    def _x0_weight(self, a: Tensor, s: Tensor) -> Tensor:
        forms = {"eps": (s / a).square(), "x0": torch.ones_like(a), "v": s.square(), "flow": s.square()}
        return forms[self.prediction]

    def _wide(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        a, s = self.coefficients(t)
        shape = (-1,) + (1,) * (like.ndim - 1)
        return a.to(like.dtype).view(shape), s.to(like.dtype).view(shape)

    def _form(self, kind: Prediction, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        a, s = self._wide(t, x0)
        forms = {
            "eps": lambda: noise,
            "x0": lambda: x0,
            "v": lambda: a * noise - s * x0,
            "flow": lambda: noise - x0,
        }
        return forms[kind]()

    def _solve(self, pred: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(x0, noise) that a prediction implies; eps at a = 0 and x0 at s = 0 have no answer (division by
        zero).
        """
        a, s = self._wide(t, x_t)
        if self.prediction == "eps":
            return (x_t - s * pred) / a, pred
        if self.prediction == "x0":
            return pred, (x_t - a * pred) / s
        if self.prediction == "v":
            return a * x_t - s * pred, s * x_t + a * pred
        scale = a + s  # x_t = a x0 + s n and pred = n - x0; a + s is 1 for rectified flow
        return (x_t - s * pred) / scale, (x_t + a * pred) / scale
