"""Decoupled attention from torch's own attention: the twin of the kernels, for any device and dtype."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from diffalign.attention.sizes import Sizes

Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""q (B, N, H, D), k and v (B, L, H, D), mask or None -> (B, N, H, D)."""


def eager(
    q: Tensor,
    k_text: Tensor,
    v_text: Tensor,
    k_user: Tensor,
    v_user: Tensor,
    scale: Tensor,
    lengths: Tensor | None,
    base: Tensor | None,
    sizes: Sizes,
    attend: Attention | None = None,
) -> Tensor:
    """Output (B, N, H, D): one attention per segment, scaled and added. Arguments as in ``op.fused``; attend
    computes the text's attention from q, k, v and a mask, instead of torch's choice.
    """
    out = base
    if sizes.text:
        k, v = _spread(k_text, sizes.text_group), _spread(v_text, sizes.text_group)
        out = _to_text(q, k, v, lengths, attend or _plain)
    k_user, v_user = _spread(k_user, sizes.user_group), _spread(v_user, sizes.user_group)
    each = sizes.user // sizes.segments
    for i, (k, v) in enumerate(zip(k_user.split(each, 1), v_user.split(each, 1), strict=True)):
        part = _plain(q, k, v, None) * scale[:, i, None, None, None].to(q.dtype)
        out = part if out is None else out + part
    assert out is not None  # for mypy: there is at least one user segment
    return out


def _spread(x: Tensor, group: int) -> Tensor:
    """One row per sample of keys that neighbours share."""
    return x if group == 1 else x.repeat_interleave(group, 0)


def _to_text(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, attend: Attention) -> Tensor:
    """Attention (B, N, H, D) to the first lengths (B,) keys; a length of 0 gives 0."""
    if lengths is None:
        return attend(q, k, v, None)
    here = torch.arange(k.shape[1], device=q.device) < lengths.clamp(min=1)[:, None]  # (B, L)
    return attend(q, k, v, here[:, None, None]) * (lengths > 0)[:, None, None, None]


def _plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v, mask).transpose(1, 2)
