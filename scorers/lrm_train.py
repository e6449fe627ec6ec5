"""Scorers of noisy latents while they learn from votes: LPO's and DiNa-LRM's, and SPO's judge."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from scorers.images import ImageLike
from scorers.learners import Learner, Loss, bound_scale
from scorers.lrm import Lrm
from scorers.lrm_losses import DINA_LOSSES, DinaLoss, dina_loss
from scorers.lrm_noise import NoiseLevels
from scorers.step_aware import StepAware
from scorers.train_options import TrainOptions
from scorers.votes import Item, Vote

if TYPE_CHECKING:
    from scorers.accuracy import Accuracy

Look = Callable[[Tensor, Tensor, Sequence[str]], Tensor]
"""(B, C, h, w) noisy latents, (B,) times and B prompts to (B, 3, H, W) pictures in [0, 1]."""
EVALUATION_SEED = 7

LRM_15 = TrainOptions(
    steps=4000, batch=128, learning_rate=1e-5, warmup=500, schedule="constant", weight_decay=0.0
)
"""LRM-1.5 as published; no weight decay is stated. It is then early-stopped by the validation votes."""
LRM_XL = TrainOptions(
    steps=8000, batch=32, learning_rate=1e-5, warmup=1000, schedule="constant", weight_decay=0.0
)
"""LRM-XL as published."""


@dataclass(frozen=True, kw_only=True)
class NoiseOptions:
    """How clean latents become noisy while a scorer learns from votes on them."""

    shared_noise: bool = False
    """The same noise for both sides of a pair, as DiNa-LRM has it; LPO draws its own for each."""
    loss: Literal["pair", "bt", "bt-margin", "thurstone", "thurstone-constant"] = "pair"
    """LPO's two-way softmax with ties, or one of DiNa-LRM's."""
    train_text: bool = True
    """Train the text encoders too, as LRM-1.5 and LRM-XL do; LRM-SD3 leaves them frozen."""


class NoisyLearner(Learner, ABC):
    """A scorer that sees both sides of a vote at the same random noise level.

    Votes hold clean latents (C, h, w), in the scale of the denoiser, in place of pictures. The level is drawn
    uniformly. While the scorer learns, noise and level come from the step's own seed; when it is evaluated
    they are the same at every call, so that steps can be compared.

    Args:
        scorer: trained in place.
        levels: where the noise comes from.
        noise: how it is drawn, and the loss.
    """

    losses = frozenset({"pickscore"})
    dropout = True  # so that the trainer seeds every step

    def __init__(self, scorer: nn.Module, levels: NoiseLevels, noise: NoiseOptions | None = None) -> None:
        """See the class."""
        super().__init__(scorer)
        self.levels, self.noise = levels, noise or NoiseOptions()

    @abstractmethod
    def noisy_scores(self, x_t: Tensor, times: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,) scores of noisy latents (B, C, h, w) at (B,) times, differentiable in the weights."""

    def gaps(self, votes: Sequence[Vote]) -> tuple[Tensor, Tensor]:
        """(B,) score of the first minus that of the second, and (B,) noise factor at which it was seen."""
        x0 = self.read([v.first for v in votes] + [v.second for v in votes])  # (2B, C, h, w)
        rows, n = self._draw(len(votes), x0)
        both = rows.repeat(2)
        x_t = self.levels.add_noise(x0, n, both)
        times = self.levels.times[both].to(x0.device)
        first, second = self.noisy_scores(x_t, times, [v.prompt for v in votes] * 2).chunk(2)
        return first - second, self.levels.noise[rows].to(x0)

    def logit(self, votes: Sequence[Vote]) -> Tensor:
        """See Learner."""
        return self.gaps(votes)[0]

    def each(self, items: Sequence[Item], loss: Loss) -> Tensor:
        """See Learner; the loss is that of the noise options, LPO's being the one called ``pickscore``."""
        kind = self.noise.loss
        if kind == "pair":
            return super().each(items, loss)
        votes = [item for item in items if isinstance(item, Vote)]
        gap, sigma = self.gaps(votes)
        label = torch.tensor([vote.label for vote in votes], device=gap.device)
        return dina_loss(gap, sigma, label, _dina(kind))

    def read(self, images: Sequence[ImageLike]) -> Tensor:
        """(N, C, h, w) clean latents on the scorer's device, float32.

        Raises:
            ValueError: something else than latents of one shape.
        """
        rows = [x for x in images if isinstance(x, Tensor) and x.ndim == 3 and x.is_floating_point()]
        if len(rows) < len(images) or len({x.shape for x in rows}) > 1:
            raise ValueError(
                "votes on noisy latents hold clean latents, floats (C, h, w) of one shape, in place of "
                "pictures; encode the pictures with the policy's VAE first"
            )
        return torch.stack(rows).float().to(next(self.scorer.parameters()).device)

    def tame(self) -> None:
        """See Learner."""
        bound_scale(self.scorer)

    def _draw(self, pairs: int, x0: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) levels, and noise (2B, C, h, w) for the first and then the second sides."""
        generator = None if self.training else torch.Generator().manual_seed(EVALUATION_SEED)
        rows = torch.randint(len(self.levels.times), (pairs,), generator=generator)
        count = pairs if self.noise.shared_noise else 2 * pairs
        n = torch.randn(count, *x0.shape[1:], generator=generator).to(x0)
        return rows, n.repeat(2, 1, 1, 1) if self.noise.shared_noise else n


class LatentLearner(NoisyLearner):
    """A latent reward model while it learns; ``train_scorer`` and ``fit`` of scorers.train take it."""

    scorer: Lrm

    def noisy_scores(self, x_t: Tensor, times: Tensor, prompts: Sequence[str]) -> Tensor:
        """See NoisyLearner."""
        return self.scorer.score_latents(x_t, times, prompts)

    def unlock(self, options: TrainOptions) -> None:
        """See Learner: trunk, projections and temperature, and the text encoders where the options say so."""
        self.scorer.requires_grad_(True)
        self.scorer.texts.requires_grad_(self.noise.train_text)

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Save the model, see ``Lrm.save``."""
        self.scorer.save(folder, dtype)


class StepLearner(NoisyLearner):
    """A step-aware judge while it learns, from what a denoiser makes of the noisy latents in one step.

    Args:
        scorer: trained in place.
        levels: where the noise comes from.
        look: the denoiser's one-step prediction, decoded; no gradient goes through it.
        noise: how noise is drawn, and the loss.
    """

    scorer: StepAware

    def __init__(
        self, scorer: StepAware, levels: NoiseLevels, look: Look, noise: NoiseOptions | None = None
    ) -> None:
        """See the class."""
        super().__init__(scorer, levels, noise)
        self.look = look

    def noisy_scores(self, x_t: Tensor, times: Tensor, prompts: Sequence[str]) -> Tensor:
        """See NoisyLearner."""
        with torch.no_grad():
            pictures = self.look(x_t, times, prompts)
        return self.scorer.score_steps(pictures, times, prompts)

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Save the judge, see ``StepAware.save``."""
        self.scorer.save(folder, dtype)


def accuracy_at(learner: NoisyLearner, votes: Sequence[Item], levels: NoiseLevels) -> Accuracy:
    """Agreement with votes on latents at given levels, one as a rule; the noise is that of evaluations."""
    from scorers.train import evaluate

    kept, learner.levels = learner.levels, levels
    try:
        return evaluate(learner.eval(), votes, threshold=0.0)
    finally:
        learner.levels = kept


def _dina(kind: str) -> DinaLoss:
    """The same name, as the type that ``dina_loss`` takes."""
    return DINA_LOSSES[DINA_LOSSES.index(kind)]
