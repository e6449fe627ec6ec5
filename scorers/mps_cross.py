"""The cross model of MPS: tokens of a picture look at those of its prompt that matter for the condition."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-5
_OUTWARD = ("to_out.weight", "ff.2.weight", "attn_out.weight", "ff_out.1.weight")
"""Endings of the names of the weights whose products are added to the tokens."""


class CrossModel(nn.Module):
    """Layers of (cross-attention beside a gated feed-forward) and (self-attention beside another one).

    Module names are those of the published checkpoint.

    Args:
        dim: width of the tokens.
        layers: how many.
        heads: heads of the queries; keys and values have one (multi-query attention).
        dim_head: width of a head.
        mult: width of the feed-forward, in widths of the tokens.
    """

    def __init__(self, *, dim: int, layers: int, heads: int, dim_head: int, mult: int = 4) -> None:
        """See the class."""
        super().__init__()
        sizes = (dim, heads, dim_head, mult)
        self.layers = nn.ModuleList(
            nn.ModuleList([_Residual(_Cross(*sizes)), _Residual(_Parallel(*sizes))]) for _ in range(layers)
        )

    def forward(self, query: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        """Mix context into the query.

        Args:
            query: (B, Q, dim) tokens of pictures.
            context: (B, L, dim) tokens of prompts.
            mask: (B, L), added to the logits of the attention: 0 for tokens that are seen, else -inf.

        Returns:
            (B, Q, dim).
        """
        x = query
        for layer in self.layers:
            cross, parallel = layer.children()
            x = parallel(cross(x, context, mask))
        return x

    def silence(self) -> None:
        """Zero what the layers add, so that a new model starts as the CLIP that it is put on."""
        for name, parameter in self.named_parameters():
            if name.endswith(_OUTWARD):
                nn.init.zeros_(parameter)


class _Residual(nn.Module):
    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor, *rest: Tensor) -> Tensor:
        out: Tensor = self.fn(x, *rest)
        return x + out


class _Norm(nn.Module):
    """LayerNorm without a trained bias; a bias of zeros is saved all the same."""

    bias: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.register_buffer("bias", torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, EPS)


class _SwiGlu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x, gate = x.chunk(2, -1)
        return F.silu(gate) * x


class _Cross(nn.Module):
    def __init__(self, dim: int, heads: int, dim_head: int, mult: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = _Norm(dim)
        self.to_q = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(dim, 2 * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim, bias=False)
        wide = mult * dim
        self.ff = nn.Sequential(
            nn.Linear(dim, 2 * wide, bias=False), _SwiGlu(), nn.Linear(wide, dim, bias=False)
        )

    def forward(self, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        x = self.norm(x)
        k, v = self.to_kv(context).chunk(2, -1)  # (B, L, h)
        out = _attend(_split(self.to_q(x), self.heads), k, v, mask.to(x.dtype)[:, None, None])
        return torch.add(self.to_out(out), self.ff(x))


class _Parallel(nn.Module):
    def __init__(self, dim: int, heads: int, dim_head: int, mult: int) -> None:
        super().__init__()
        self.heads, self.parts = heads, (heads * dim_head, dim_head, dim_head, 2 * mult * dim)
        self.norm = _Norm(dim)
        self.rotary_emb = _Rotary(dim_head)
        self.fused_attn_ff_proj = nn.Linear(dim, sum(self.parts), bias=False)
        self.attn_out = nn.Linear(heads * dim_head, dim, bias=False)
        self.ff_out = nn.Sequential(_SwiGlu(), nn.Linear(mult * dim, dim, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, ff = self.fused_attn_ff_proj(self.norm(x)).split(self.parts, -1)
        out = _attend(self.rotary_emb(_split(q, self.heads)), self.rotary_emb(k), v, None)
        return torch.add(self.attn_out(out), self.ff_out(ff))


class _Rotary(nn.Module):
    """Rotary positions; halves are turned against each other. Angles are computed in float32."""

    inv_freq: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("inv_freq", 1 / 10000 ** (torch.arange(0, dim, 2).float() / dim))

    def forward(self, x: Tensor) -> Tensor:
        place = torch.arange(x.shape[-2], device=x.device, dtype=torch.float32)
        angle = torch.outer(place, self.inv_freq.float()).repeat(1, 2)  # (Q, h)
        a, b = x.chunk(2, -1)
        return x * angle.cos().to(x.dtype) + torch.cat([-b, a], -1) * angle.sin().to(x.dtype)


def _split(x: Tensor, heads: int) -> Tensor:
    """(B, Q, heads * h) to (B, heads, Q, h)."""
    parts: Tensor = x.unflatten(-1, (heads, -1))
    return parts.transpose(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Queries (B, heads, Q, h) on one head of keys and values (B, L, h): (B, Q, heads * h)."""
    k, v = (t[:, None].expand(-1, q.shape[1], -1, -1) for t in (k, v))
    out: Tensor = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.transpose(1, 2).flatten(2)
