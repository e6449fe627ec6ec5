"""Decoupled cross-attention: text and user keys, each with its own softmax, added with a scale per sample.

out = softmax(Q K_t^T / sqrt D) V_t + sum_i s_i softmax(Q K_i^T / sqrt D) V_i

(the form of IP-Adapter, arXiv:2308.06721, eq. 5, with several second parts).

On a GPU one Triton kernel does both in one pass over the queries, with one accumulator and one output;
elsewhere torch's attention is called once per softmax. Both forms differentiate.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal, get_args

import torch
from torch import Tensor

from diffalign.attention.eager import Attention, eager
from diffalign.attention.sizes import HALF, Sizes, sizes_of, why_not_fused

Implementation = Literal["auto", "fused", "eager"]
CAPABILITY = (8, 0)
"""Lowest compute capability of a GPU that the kernels are compiled for in the tests."""


def decoupled_attention(
    q: Tensor,
    k_text: Tensor,
    v_text: Tensor,
    k_user: Tensor,
    v_user: Tensor,
    scale: Tensor,
    *,
    lengths: Tensor | None = None,
    attend: Attention | None = None,
    implementation: Implementation = "auto",
) -> Tensor:
    """Attention to the text plus scaled attention to user tokens.

    Args:
        q: (B, N, H, D) queries.
        k_text: (B / G, L, H, D) text keys; neighbouring groups of G samples share a row (a pair: G = 2).
        v_text: text values, shaped like the keys.
        k_user: (B / G', M, H, D) user keys; with S segments they stand one after the other, M / S each.
        v_user: user values, shaped like the keys.
        scale: (B,) or (B, S) weight of each user segment; 0 gives the text's part alone. Differentiable.
        lengths: (B,) whole numbers: how many text keys count, the rest is padding on the right. 0: none.
        attend: how the eager form computes the text's attention (an ``attend.Attend``); None: torch chooses.
        implementation: the Triton kernels, torch's own attention, or what suits tensors and device.

    Returns:
        (B, N, H, D) in the dtype of q.

    Raises:
        ValueError: shapes, dtypes or devices that do not belong together, or "fused" where that cannot run.
    """
    if k_text.ndim == 4 and k_text.shape[1] == 0:
        raise ValueError("k_text has no tokens; without text use add_user_attention")
    return _attend(q, k_text, v_text, k_user, v_user, scale, lengths, None, attend, implementation)


def add_user_attention(
    base: Tensor,
    q: Tensor,
    k_user: Tensor,
    v_user: Tensor,
    scale: Tensor,
    *,
    implementation: Implementation = "auto",
) -> Tensor:
    """``base`` plus scaled attention to user tokens, for models whose text sits in the self-attention.

    Args:
        base: (B, N, H, D) output of the model's own attention for these queries.
        q: (B, N, H, D) queries (of the picture alone).
        k_user: (B / G, M, H, D) user keys, segments one after the other.
        v_user: user values, shaped like the keys.
        scale: (B,) or (B, S) weight of each user segment. Differentiable.
        implementation: see ``decoupled_attention``.

    Returns:
        (B, N, H, D) in the dtype of q.

    Raises:
        ValueError: see ``decoupled_attention``.
    """
    if base.shape != q.shape or base.dtype != q.dtype or base.device != q.device:
        raise ValueError(
            f"base is {tuple(base.shape)} {base.dtype} on {base.device} and q {tuple(q.shape)} {q.dtype} on"
            f" {q.device}; they must be alike"
        )
    none = k_user[:, :0]
    return _attend(q, none, none, k_user, v_user, scale, None, base, None, implementation)


def why_not(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why the fused kernels cannot run this on this device, or None when they can."""
    return why_not_on(device.type, device.index) or why_not_fused(sizes, dtype)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def why_not_on(kind: str, index: int | None) -> str | None:
    """Why the fused kernels cannot run on a device of this kind and number, or None when they can."""
    if find_spec("triton") is None:
        return "triton is not installed (it comes with torch for CUDA on Linux)"
    from diffalign.attention.launch import interpreted

    if kind != "cuda":
        return None if interpreted() else f"the tensors are on {kind}; the kernels are for NVIDIA GPUs"
    if torch.version.hip is not None:
        return "the GPU is driven by ROCm; the kernels are compiled and tested for NVIDIA GPUs only"
    if torch.cuda.get_device_capability(index) < CAPABILITY:
        return f"the GPU's compute capability is below {CAPABILITY[0]}.{CAPABILITY[1]}"
    return None


def choose(sizes: Sizes, dtype: torch.dtype, device: torch.device, *, backward: bool) -> Implementation:
    """What "auto" means: on a GPU in half precision the form that is faster there, measured once per shape
    (the kernels where nothing can be measured: compiled or captured in a graph); elsewhere torch's attention.

    In fp32 every product is three on tensor cores, to keep its bits: the kernels have to be asked for.
    """
    if device.type != "cuda" or dtype not in HALF or why_not(sizes, dtype, device):
        return "eager"
    if torch.compiler.is_compiling() or torch.cuda.is_current_stream_capturing():
        return "fused"
    from diffalign.attention.measured import faster

    return "fused" if faster(sizes, dtype, device, backward) == "fused" else "eager"


def _attend(
    q: Tensor,
    k_text: Tensor,
    v_text: Tensor,
    k_user: Tensor,
    v_user: Tensor,
    scale: Tensor,
    lengths: Tensor | None,
    base: Tensor | None,
    attend: Attention | None,
    implementation: Implementation,
) -> Tensor:
    if implementation not in get_args(Implementation):
        raise ValueError(
            f"implementation {implementation!r} is none of {', '.join(get_args(Implementation))}"
        )
    s = scale[:, None] if scale.ndim == 1 else scale
    sizes = sizes_of(q, k_text, v_text, k_user, v_user, s)
    lengths = _lengths(lengths, sizes)
    if implementation == "auto":
        backward = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k_text, k_user, v_user, s))
        implementation = choose(sizes, q.dtype, q.device, backward=backward)
    if implementation == "eager":
        return eager(q, k_text, v_text, k_user, v_user, s, lengths, base, sizes, attend)
    reason = why_not(sizes, q.dtype, q.device)
    if reason:
        raise ValueError(f'the fused attention cannot run: {reason}; use implementation="auto"')
    from diffalign.attention.op import fused

    out: Tensor = fused(q, k_text, v_text, k_user, v_user, s, lengths, base)[0]
    return out


def _lengths(lengths: Tensor | None, sizes: Sizes) -> Tensor | None:
    if lengths is None:
        return None
    if lengths.shape != (sizes.batch,) or lengths.is_floating_point():
        raise ValueError(
            f"lengths is {tuple(lengths.shape)} {lengths.dtype}; it must be ({sizes.batch},) whole numbers"
        )
    return lengths.to(torch.int32)
