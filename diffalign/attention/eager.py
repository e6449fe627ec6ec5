"""Decoupled attention from torch's own attention: the twin of the kernels, for any device and dtype."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from diffalign.attention.sizes import Sizes


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
) -> Tensor:
    """Output (B, N, H, D): one attention per segment, scaled and added. Arguments as in ``op.fused``."""
    out = base
    if sizes.text:
        out = _attention(q, _spread(k_text, sizes.text_group), _spread(v_text, sizes.text_group), lengths)
    k_user, v_user = _spread(k_user, sizes.user_group), _spread(v_user, sizes.user_group)
    each = sizes.user // sizes.segments
    for i, (k, v) in enumerate(zip(k_user.split(each, 1), v_user.split(each, 1), strict=True)):
        part = _attention(q, k, v, None) * scale[:, i, None, None, None].to(q.dtype)
        out = part if out is None else out + part
    assert out is not None  # for mypy: there is at least one user segment
    return out


def _spread(x: Tensor, group: int) -> Tensor:
    """One row per sample of keys that neighbours share."""
    return x if group == 1 else x.repeat_interleave(group, 0)


def _attention(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None) -> Tensor:
    """Attention (B, N, H, D) to the first lengths (B,) keys; a length of 0 gives 0."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if lengths is None:
        return scaled_dot_product_attention(q, k, v).transpose(1, 2)
    here = torch.arange(k.shape[2], device=q.device) < lengths.clamp(min=1)[:, None]  # (B, L)
    out = scaled_dot_product_attention(q, k, v, here[:, None, None]).transpose(1, 2)
    return out * (lengths > 0)[:, None, None, None]
