"""Who compares the next latents that are drawn from one latent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffalign.diffusion.rollout import Guided, Score
from diffalign.online.blocks import JudgeConfig
from diffalign.online.rewards import load_latent_scorer, load_pixel_scorer
from diffalign.policy import Policy
from scorers.latent import LatentScorer
from scorers.protocol import Scorer

AT_ONCE = 64
"""Candidates that go through a network or a scorer together."""


@dataclass(frozen=True, kw_only=True)
class CandidateJudge:
    """A loaded judge; exactly one of the two scorers is there."""

    policy: Policy
    scale: float
    latent: LatentScorer | None = None
    pixel: Scorer | None = None

    @classmethod
    def load(cls, config: JudgeConfig, policy: Policy) -> CandidateJudge:
        """Load the scorer.

        Raises:
            ValueError: a scorer of another VAE's latents, or one that does not score alone.
        """
        if config.looks == "latents":
            return cls(policy=policy, scale=config.scale, latent=load_latent_scorer(config.scorer, policy))
        scorer = load_pixel_scorer(config.scorer, policy.device)
        if scorer.kind != "pointwise":
            raise ValueError(f"judge {config.scorer} is {scorer.kind}; candidates need a score of each")
        return cls(policy=policy, scale=config.scale, pixel=scorer)

    def of(self, guided: Guided, prompts: Sequence[str]) -> Score:
        """The judge of a run for these prompts; ``guided`` predicts for the same."""

        def score(x: Tensor, t: Tensor) -> Tensor:
            """(K, N) scores of (K, N, C, h, w) candidates at (N,) times."""
            k, n = x.shape[:2]
            rows = torch.arange(n).repeat(k)
            parts = [self._some(guided, prompts, x.flatten(0, 1)[at], t[rows[at]], rows[at])
                     for at in torch.arange(k * n).split(AT_ONCE)]  # fmt: skip
            return self.scale * torch.cat(parts).view(k, n)

        return score

    def _some(self, guided: Guided, prompts: Sequence[str], x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        """(B,) scores of (B, C, h, w) candidates of the prompts at (B,) ``rows``."""
        texts, process = [prompts[i] for i in rows.tolist()], self.policy.process
        if self.latent is not None:
            found = self.latent.score_latents(x, process.model_time(t), texts)
            return found if self.latent.higher_better else -found
        assert self.pixel is not None
        clean = process.is_flow and not bool(t.any())
        x0 = x if clean else process.convert(guided.rows(rows.to(x.device))(x, t), x, t, "x0")
        pictures = ((self.policy.decode(x0) + 1) / 2).clamp(0, 1)
        found = self._scored(pictures, process.model_time(t), texts)
        return found if self.pixel.higher_better else -found

    def _scored(self, pictures: Tensor, time: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,) scores of predicted pictures; a step-aware judge is told the (B,) model times."""
        assert self.pixel is not None
        aware = getattr(self.pixel, "score_steps", None)
        scores: Tensor = (
            self.pixel.score_tensor(pictures, prompts) if aware is None else aware(pictures, time, prompts)
        )
        return scores
