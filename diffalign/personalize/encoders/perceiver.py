"""Perceiver: a few learned queries read a set of any length (Jaegle et al. 2021, arXiv:2103.03206)."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffalign.personalize.encoders.base import EncoderOptions, small


@dataclass(frozen=True, kw_only=True)
class ReaderOptions(EncoderOptions, ABC):
    """Options of encoders that read a set by a Perceiver."""

    feature: int = 1024
    """Width of what is read, that of the tower that makes it."""
    inner: int = 512
    """Width inside."""
    depth: int = 4
    """Blocks of cross-attention, self-attention and network."""
    heads: int = 8
    """Must divide the width inside."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for name in ("feature", "depth", "heads"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        self.require(
            self.inner >= 1 and self.inner % self.heads == 0, "inner", f"a multiple of {self.heads} heads"
        )

    def perceiver(self) -> Perceiver:
        """Random weights."""
        return Perceiver(self.tokens, self.inner, self.depth, self.heads)


class Attention(nn.Module):
    """Attention of x to a context, with norms before both."""

    def __init__(self, width: int, heads: int) -> None:
        """``heads`` must divide ``width``."""
        super().__init__()
        self.heads = heads
        self.norm_x, self.norm_context = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, K, W) for x (B, K, W), context (B, T, W) and mask (B, T) bool, False where not to look."""
        x, context = self.norm_x(x), self.norm_context(context)
        q, k, v = (
            layer(given).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, tokens, W / H)
            for layer, given in ((self.q, x), (self.k, context), (self.v, context))
        )
        seen = None if mask is None else mask[:, None, None]
        found: Tensor = self.out(F.scaled_dot_product_attention(q, k, v, seen).transpose(1, 2).flatten(2))
        return found


class Block(nn.Module):
    """Queries look at the context, then at one another, then each goes through a network of its own."""

    def __init__(self, width: int, heads: int) -> None:
        """See Attention."""
        super().__init__()
        self.cross, self.own = Attention(width, heads), Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        """(B, K, W)."""
        x = x + self.cross(x, context, mask)
        x = x + self.own(x, x)
        out: Tensor = x + self.mlp(x)
        return out


class Perceiver(nn.Module):
    """Turns (B, T, W) of which some are padding into (B, K, W); the order of T plays no part."""

    def __init__(self, queries: int, width: int, depth: int, heads: int) -> None:
        """``heads`` must divide ``width``."""
        super().__init__()
        self.queries = small(queries, width)
        self.sink = small(1, width)
        """Always in view: the softmax over nothing but padding would have no value."""
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, context: Tensor, mask: Tensor) -> Tensor:
        """(B, K, W) from context (B, T, W) and mask (B, T) bool, False at padding (which must be finite)."""
        people = len(context)
        context = torch.cat([self.sink.expand(people, -1, -1), context], 1)
        mask = torch.cat([mask.new_ones(people, 1), mask], 1)
        x = self.queries.expand(people, -1, -1)
        for block in self.blocks:
            x = block(x, context, mask)
        out: Tensor = self.norm(x)
        return out
