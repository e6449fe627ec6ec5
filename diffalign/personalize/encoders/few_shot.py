"""A set encoder: a few votes of a person become tokens, also for people who were never trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffalign.personalize.encoders.about import About, Examples
from diffalign.personalize.encoders.base import (
    Encoded,
    UserEncoder,
    check_width,
    encoders,
    small,
)
from diffalign.personalize.encoders.perceiver import ReaderOptions

LOGVAR = 1.0
"""Bound on the logarithm of the posterior's variance, as VPL has it."""


@encoders.register("few_shot")
@dataclass(frozen=True, kw_only=True)
class FewShotOptions(ReaderOptions):
    """Reads (prompt, winner, loser) features of a person's votes as a set: no order, any number.

    With ``variational`` the set is summed up in one z ~ q(z | votes) of length sqrt(d) (VPL, Poddar et al.
    2024, arXiv:2408.10075), whose divergence from N(0, 1) the trainer may weigh (1e-4 is published).
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2408.10075"
    needs: ClassVar[frozenset[str]] = frozenset({"examples"})

    variational: bool = False
    """Draw tokens from a posterior while training; its mean otherwise."""

    def make(self, people: int = 0) -> FewShot:
        """See EncoderOptions."""
        return FewShot(self)


class FewShot(UserEncoder):
    """See FewShotOptions. Somebody without votes is unknown."""

    def __init__(self, options: FewShotOptions) -> None:
        """Random weights."""
        super().__init__(options)
        self.shape = options
        self.inputs = nn.ModuleList(nn.Linear(options.feature, options.inner, bias=False) for _ in range(4))
        self.kinds = small(4, options.inner)
        self.perceiver = options.perceiver()
        self.posterior = nn.Linear(options.inner, 2 * options.inner) if options.variational else None
        outputs = options.tokens * options.width if options.variational else options.width
        self.out = nn.Linear(options.inner, outputs)

    def encode(self, about: About) -> Encoded:
        """See UserEncoder."""
        examples = about.examples
        assert examples is not None  # encoded() has looked
        read = self.perceiver(*self._context(examples))  # (B, K, inner)
        known = examples.mask.any(1)
        if self.posterior is None:
            return Encoded(tokens=self.out(read), known=known)
        mean, logvar = self.posterior(read.mean(1)).chunk(2, -1)  # (B, inner) each
        logvar = logvar.clamp(-LOGVAR, LOGVAR)
        z = mean + (0.5 * logvar).exp() * torch.randn_like(mean) if self.training else mean
        z = F.normalize(z, dim=-1) * self.shape.inner**0.5
        tokens = self.out(z).unflatten(-1, (self.shape.tokens, self.shape.width))
        return Encoded(tokens=tokens, known=known, kl=standard_kl(mean, logvar))

    def _context(self, examples: Examples) -> tuple[Tensor, Tensor]:
        """(B, 4 E, inner) of prompt, winner, loser and their difference, and the mask of it."""
        check_width(examples.winner, self.shape.feature, "votes", "few_shot")
        sides = (examples.prompt, examples.winner, examples.loser, examples.winner - examples.loser)
        parts = []
        for layer, side, kind in zip(self.inputs, sides, self.kinds, strict=True):
            # unit features have entries of 1 / sqrt(F); what padding holds must not reach the sums
            x = side.float().masked_fill(~examples.mask[..., None], 0.0) * self.shape.feature**0.5
            parts.append(layer(x) + kind)
        return torch.cat(parts, 1), examples.mask.repeat(1, 4)


def standard_kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """(B,) divergence of N(mean, exp(logvar)) from N(0, 1) in nats, summed over (B, d)."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(-1)
