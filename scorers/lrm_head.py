"""Heads of latent reward models: cosine with the prompt (LPO), or queries at several layers (DiNa-LRM)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scorers.lrm_noise import time_features
from scorers.lrm_trunk import pooled

LOG_SCALE = 2.6592
"""Logarithm of CLIP's first temperature, 1 / 0.07."""
TIME_WIDTH = 64


def enhanced(seen: Sequence[Tensor], blank: Sequence[Tensor], guidance: float, multi_scale: bool) -> Tensor:
    """(B, sum W_i) LPO's visual feature enhancement: the deepest feature is guided towards the prompt.

    f_u + g (f_c - f_u), with f_c seen with the prompt and f_u without; arXiv:2502.01051.

    Args:
        seen: (B, W_i) pooled features with the prompt, the deepest last.
        blank: the same without a prompt.
        guidance: g.
        multi_scale: guide all features, not the deepest alone.
    """
    guided = [u + guidance * (c - u) for c, u in zip(seen, blank, strict=True)]
    return torch.cat(guided if multi_scale else [*seen[:-1], guided[-1]], 1)


class CosineHead(nn.Module):
    """Score exp(tau) cos(V, T) of pooled features and prompt, both projected; float32 whatever is around it.

    Args:
        widths: channels of the trunk's maps.
        text: width of the pooled prompt.
        features: width of the common space.
        guidance: g of ``enhanced``; at 1 the trunk needs to run only once.
        multi_scale: see ``enhanced``.
    """

    range = (-100.0, 100.0)

    def __init__(
        self,
        widths: Sequence[int],
        text: int,
        features: int,
        guidance: float = 7.5,
        multi_scale: bool = False,
    ) -> None:
        """Start the visual projection at N(0, 0.02^2), that of the prompt at the identity if it is square."""
        super().__init__()
        self.guidance, self.multi_scale = guidance, multi_scale
        self.visual = nn.Linear(sum(widths), features, bias=False)
        self.text = nn.Linear(text, features, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(LOG_SCALE))
        nn.init.normal_(self.visual.weight, std=0.02)
        if text == features:
            nn.init.eye_(self.text.weight)
        else:
            nn.init.normal_(self.text.weight, std=0.02)

    @property
    def needs_blank(self) -> bool:
        """Whether the trunk must also run without a prompt."""
        return self.guidance != 1

    def features(self, maps: Sequence[Tensor], blank: Sequence[Tensor] | None) -> Tensor:
        """(B, features) V: maps (B, N_i, W_i) seen with and without the prompt, pooled and projected."""
        seen = pooled(maps)
        whole = (
            enhanced(seen, pooled(blank), self.guidance, self.multi_scale) if blank else torch.cat(seen, 1)
        )
        out: Tensor = self.visual(whole)
        return out

    def forward(
        self, maps: Sequence[Tensor], blank: Sequence[Tensor] | None, times: Tensor, text: Tensor
    ) -> Tensor:
        """(B,) float32 scores; see ``features``. ``text`` (B, P) are pooled prompts; no ``times``."""
        with torch.autocast(text.device.type, enabled=False):
            v, t = self.features(maps, blank), self.text(text.float())
            return self.logit_scale.exp() * F.cosine_similarity(v, t, dim=1)


class DinaHead(nn.Module):
    """Few queries look at the tokens of several layers, modulated by prompt and noise level (FiLM).

    After DiNa-LRM (HKUST-C4G/diffusion-rm): FiLM, cross-attention, 4 queries. Its inner sizes are our own.

    Args:
        widths: channels of the trunk's maps.
        text: width of the pooled prompt.
        features: width of the head.
        queries: how many look.
        heads: of the attention.
    """

    range = (-float("inf"), float("inf"))
    needs_blank: Literal[False] = False

    def __init__(
        self, widths: Sequence[int], text: int, features: int, queries: int = 4, heads: int = 4
    ) -> None:
        """The FiLM starts as the identity."""
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.LayerNorm(w), nn.Linear(w, features)) for w in widths)
        self.film = nn.Sequential(
            nn.Linear(text + TIME_WIDTH, features), nn.SiLU(), nn.Linear(features, 2 * features * len(widths))
        )
        self.queries = nn.Parameter(torch.randn(queries, features) * 0.02)
        self.attention = nn.MultiheadAttention(features, heads, batch_first=True)
        self.score = nn.Sequential(
            nn.LayerNorm(features), nn.Linear(features, features), nn.GELU(), nn.Linear(features, 1)
        )
        for parameter in self.film[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, maps: Sequence[Tensor], blank: Sequence[Tensor] | None, times: Tensor, text: Tensor
    ) -> Tensor:
        """(B,) float32 scores of maps (B, N_i, W_i) at (B,) times for pooled prompts (B, P); no ``blank``."""
        with torch.autocast(text.device.type, enabled=False):
            film = self.film(torch.cat([text.float(), time_features(times, TIME_WIDTH)], 1))
            parts = film[:, None].chunk(2 * len(maps), 2)  # (B, 1, F): scale and shift of each layer
            tokens = [
                layer(m.float()) * (1 + parts[2 * i]) + parts[2 * i + 1]
                for i, (layer, m) in enumerate(zip(self.layers, maps, strict=True))
            ]
            seen = torch.cat(tokens, 1)  # (B, sum N_i, F)
            asked = self.queries.expand(len(seen), -1, -1)
            found, _ = self.attention(asked, seen, seen, need_weights=False)
            out: Tensor = self.score(found.mean(1))[:, 0]
        return out
