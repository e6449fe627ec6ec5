"""Keys and values of user tokens for one attention layer, and what all processors with users share."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

KEY_STD = 0.02
"""Standard deviation of key weights that are not copied from the text's."""


class UserKeys(nn.Module):
    """Keys and values of user tokens for one layer; values begin at zero: users change nothing yet."""

    def __init__(self, width: int, heads: int, head_width: int, *, rank: int = 0, norm: bool = False) -> None:
        """Make weights for tokens of this width; rank 0 is full rank, norm adds an RMS norm of the keys."""
        super().__init__()
        self.width, self.heads = width, heads
        self.k, self.v = (_projection(width, heads * head_width, rank) for _ in range(2))
        self.norm = nn.RMSNorm(head_width, eps=1e-6) if norm else None
        nn.init.zeros_(_last(self.v).weight)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, M, H, D) of tokens (B, M, W).

        Raises:
            ValueError: tokens of another width, or ones that are trained in a layer that reentrant
                checkpointing runs.
        """
        refuse_reentrant(tokens)
        if tokens.ndim != 3 or tokens.shape[-1] != self.width:
            what = f"user tokens are {tuple(tokens.shape)}; this model takes (users, tokens, {self.width})"
            raise ValueError(f"{what}: use the encoder that belongs to it")
        tokens = tokens.to(_last(self.k).weight.dtype)
        k, v = (layer(tokens).unflatten(-1, (self.heads, -1)) for layer in (self.k, self.v))
        return (k if self.norm is None else self.norm(k)), v


def refuse_reentrant(tokens: Tensor) -> None:
    """Refuse reentrant checkpointing, however it was set: tokens in a dictionary get no gradient through it.

    Such a forward pass runs within ``CheckpointFunction.forward`` (torch's, or DeepSpeed's) without
    gradients, so that callers are looked at only where tokens that want a gradient meet none: in a step
    of training the check is two comparisons. Code under ``torch.compile`` is not looked at.

    Raises:
        ValueError: as said.
    """
    if not tokens.requires_grad or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_qualname == "CheckpointFunction.forward":
            raise ValueError(
                "activations are recomputed by reentrant checkpointing, through which user tokens get no "
                "gradient: call enable_gradient_checkpointing() without a function of your own, or with one "
                "that has use_reentrant=False"
            )


def scale_of(scale: Tensor | None, q: Tensor) -> Tensor:
    """(B,) weights of users, 1 where none are given."""
    return q.new_ones(len(q), dtype=torch.float32) if scale is None else scale


def split_heads(x: Tensor, heads: int, norm: Any) -> Tensor:
    """(B, N, H, D) of (B, N, H D), normed where the layer norms."""
    x = x.unflatten(-1, (heads, -1))  # (B, N, H, D)
    return x if norm is None else norm(x)


def _projection(width: int, inner: int, rank: int) -> nn.Linear | nn.Sequential:
    """Linear map without bias, of full or low rank."""
    shapes = [(width, rank), (rank, inner)] if rank else [(width, inner)]
    layers = [nn.Linear(a, b, bias=False) for a, b in shapes]
    nn.init.normal_(layers[-1].weight, std=KEY_STD)
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)


def _last(projection: nn.Module) -> nn.Linear:
    found = projection[-1] if isinstance(projection, nn.Sequential) else projection
    assert isinstance(found, nn.Linear)  # for mypy: _projection makes nothing else
    return found
