"""The implicit reward of an aligned model: how much better than its base it denoises a picture.

Registered as the scorer ``implicit`` through the entry-point group ``scorers``; its weights are the folder of
a finished run, ``scorers.load("implicit", "outputs/run")``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from diffalign.diffusion.corrupt import draw_seed, seeded_noise
from diffalign.diffusion.spaces import native_error
from diffalign.diffusion.timesteps import TimestepSampler, Uniform
from diffalign.policy import Policy
from diffalign.policy.family import Cond
from scorers.base import ScorerBase, check_batch

if TYPE_CHECKING:
    from diffalign.train.blocks import RunConfig

DRAWS = 16
"""Times and noises that an error is averaged over."""


class ImplicitScorer(ScorerBase):
    """Minus the denoising error of an aligned model less that of its base, averaged over fixed (t, noise).

    score = -(1 / K) sum_k (e(x, t_k, n_k) - r(x, t_k, n_k)), with native errors e of the policy and r of the
    base: the reward whose Bradley-Terry model Diffusion-DPO fits (arXiv:2311.12908, eq. 14), up to beta / 2.
    Times lie at the middles of K equal shares of the recipe's own distribution; the noises are the same for
    every picture, so that a difference of two scores is one of pictures, and a batch equals its pictures.

    Args:
        policy: the aligned model, which is frozen here; its base is what ``policy.base()`` gives.
        timesteps: where errors are compared; uniform if None.
        draws: K, at least 1.
        seed: of the noises.
        side: pictures are brought to this side in pixels; the model's own if None.
        beta: canonical beta of the run's objective, for ``compare``; 0 leaves errors as units.

    Raises:
        ValueError: fewer than one draw.
    """

    name = "implicit"
    differentiable = False
    licence = "that of the model"
    citation = (
        "Wallace et al., Diffusion Model Alignment Using Direct Preference Optimization, arXiv:2311.12908"
    )
    weights = "the folder of a finished diffalign run"
    size = "the model's"

    def __init__(
        self,
        policy: Policy,
        timesteps: TimestepSampler | None = None,
        *,
        draws: int = DRAWS,
        seed: int = 0,
        side: int | None = None,
        beta: float = 0.0,
    ) -> None:
        """See the class."""
        super().__init__()
        if draws < 1:
            raise ValueError(f"draws is {draws}; an error is averaged over one (t, noise) at least")
        self.policy, self.draws, self.seed = policy, draws, seed
        self.timesteps: TimestepSampler = timesteps or Uniform()
        self.side = side or policy.side
        self.temperature = 2 / beta if beta > 0 else 1.0
        policy.denoiser.requires_grad_(False).eval()

    @classmethod
    def load(cls, weights: Path | None, *, device: str | torch.device, dtype: torch.dtype) -> ImplicitScorer:
        """Open a finished run with its recipe's times, resolution and beta.

        Raises:
            FileNotFoundError: no run, or one that did not finish.
        """
        from diffalign.train.again import open_run

        if weights is None:
            raise FileNotFoundError(f"scorer {cls.name!r} needs {cls.weights}: pass it as weights")
        config, policy = open_run(weights)
        return cls.of(config, policy.to(torch.device(device), dtype))

    @classmethod
    def of(cls, config: RunConfig, policy: Policy) -> ImplicitScorer:
        """Make the scorer of an open run, with its recipe's times, resolution and beta.

        Raises:
            ValueError: the run was an online one, which no error of data tells apart from its base.
        """
        from diffalign.train.config import TrainConfig

        if not isinstance(config, TrainConfig):
            raise ValueError("the implicit reward is that of a run on preferences, and this one was online")
        beta = float(getattr(config.all_terms[0].objective, "canonical", 0.0))
        return cls(policy, config.timesteps, side=config.data.resolution, beta=beta)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.policy.device

    @torch.no_grad()
    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,) float32 of (B, 3, H, W) pictures in [0, 1], of any size; not differentiable.

        Raises:
            ValueError: wrong shapes, or not one prompt per picture.
        """
        check_batch(x01, prompts)
        x0, cond = self._latents(x01), self._conditions(prompts)
        mine = self.errors(x0, cond)
        with self.policy.base():
            base = self.errors(x0, cond)
        return (base - mine).mean(1)

    @torch.no_grad()
    def errors(self, x0: Tensor, cond: Cond) -> Tensor:
        """(B, K) native errors of whichever network is active, of (B, C, h, w) scaled latents."""
        shares = (torch.arange(self.draws, dtype=torch.float64) + 0.5) / self.draws
        times = self.timesteps.times(shares, self.policy.process)
        return torch.stack([self._error(x0, cond, k, t) for k, t in enumerate(times)], 1)

    def _error(self, x0: Tensor, cond: Cond, k: int, t: Tensor) -> Tensor:
        # Drawn on the CPU, so that a score does not depend on the device.
        one = seeded_noise([draw_seed("implicit", self.seed, k)], torch.zeros(1, *x0.shape[1:]))
        noise, times = one.to(x0.device).expand_as(x0), t.to(x0.device).expand(len(x0))
        process = self.policy.process
        x_t = process.add_noise(x0, noise, times)
        sizes = torch.tensor([self.side, self.side, 0, 0, self.side, self.side], device=x0.device)
        pred = self.policy.predict(x_t, times, cond, sizes.expand(len(x0), -1))
        return native_error(pred, process.target(x0, noise, times))

    def _latents(self, x01: Tensor) -> Tensor:
        """(B, C, h, w) scaled latents, the mean of the VAE's posterior; pictures are cropped to a square."""
        mean, _ = self.policy.encode_images(2 * fitted(x01.float(), self.side) - 1)
        return self.policy.scale_latents(mean)

    def _conditions(self, prompts: Sequence[str]) -> Cond:
        kinds = list(dict.fromkeys(prompts))
        known = dict(zip(kinds, self.policy.encode_prompts(kinds), strict=True))
        cond = self.policy.collate_prompts([known[p] for p in prompts])
        return {name: value.to(self.device) for name, value in cond.items()}


def fitted(x01: Tensor, side: int) -> Tensor:
    """(B, 3, side, side) of (B, 3, H, W) pictures in [0, 1]: short side resized, centre cut out."""
    height, width = x01.shape[-2:]
    if min(height, width) != side:
        size = [max(side, round(s * side / min(height, width))) for s in (height, width)]
        x01 = F.interpolate(x01, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    top, left = ((s - side) // 2 for s in x01.shape[-2:])
    return x01[..., top : top + side, left : left + side]
