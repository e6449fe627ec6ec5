"""Sizes of one decoupled attention, read off its tensors and checked once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

USER_KEYS = 64
"""Most user keys, over all segments, that the kernels take."""
HALF = (torch.float16, torch.bfloat16)
DTYPES = (*HALF, torch.float32)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large a decoupled attention is."""

    batch: int
    queries: int
    heads: int
    width: int
    """Of a head."""
    text: int
    """Text keys; 0 in the form that adds to another attention's output."""
    user: int
    """User keys, over all segments."""
    segments: int
    """User segments, each with a softmax of its own."""
    text_group: int
    """Neighbouring samples that share their text keys."""
    user_group: int
    """Neighbouring samples that share their user keys."""

    @property
    def slots(self) -> int:
        """Softmax segments, that of the text included."""
        return self.segments + (self.text > 0)

    @property
    def keys(self) -> int:
        """All keys."""
        return self.text + self.user


def sizes_of(q: Tensor, k_text: Tensor, v_text: Tensor, k_user: Tensor, v_user: Tensor, s: Tensor) -> Sizes:
    """Sizes of these tensors; shapes as in ``decoupled_attention``, s is (B, S).

    Raises:
        ValueError: they do not belong together; the message says which one and what it must be.
    """
    for name, x in {"q": q, "k_text": k_text, "v_text": v_text, "k_user": k_user, "v_user": v_user}.items():
        _check_tensor(name, x, q)
    _check_pair("text", k_text, v_text)
    _check_pair("user", k_user, v_user)
    if s.ndim != 2 or len(s) != len(q):
        raise ValueError(
            f"scale is {tuple(s.shape)}; it must be (batch,) or (batch, segments), batch {len(q)}"
        )
    user, segments = k_user.shape[1], s.shape[1]
    if user == 0 or segments == 0 or user % segments:
        raise ValueError(f"{user} user keys do not split into {segments} equal segments (columns of scale)")
    return Sizes(
        batch=q.shape[0],
        queries=q.shape[1],
        heads=q.shape[2],
        width=q.shape[3],
        text=k_text.shape[1],
        user=user,
        segments=segments,
        text_group=_group("text", len(q), len(k_text)),
        user_group=_group("user", len(q), len(k_user)),
    )


def why_not_fused(sizes: Sizes, dtype: torch.dtype) -> str | None:
    """Why the kernels cannot take this, or None when they can."""
    if dtype not in DTYPES:
        return f"the kernels compute in fp16, bf16 and fp32, not in {dtype}"
    if not 16 <= sizes.width <= 160 or sizes.width % 8:
        return f"heads are {sizes.width} wide; the kernels take multiples of 8 from 16 to 160"
    if sizes.user > USER_KEYS:
        return f"there are {sizes.user} user keys; the kernels take {USER_KEYS} at most"
    return None


def _check_tensor(name: str, x: Tensor, q: Tensor) -> None:
    if x.ndim != 4 or x.shape[2:] != q.shape[2:]:
        wanted = f"(batch, tokens, {', '.join(map(str, q.shape[2:]))})"
        raise ValueError(f"{name} is {tuple(x.shape)}; it must be {wanted}, heads and width as in q")
    if x.dtype != q.dtype:
        raise ValueError(f"{name} is {x.dtype} and q is {q.dtype}; cast them to one dtype")
    if x.device != q.device:
        raise ValueError(f"{name} is on {x.device} and q on {q.device}; move them to one device")


def _check_pair(kind: str, k: Tensor, v: Tensor) -> None:
    if k.shape != v.shape:
        raise ValueError(f"k_{kind} is {tuple(k.shape)} and v_{kind} {tuple(v.shape)}; they must be equal")


def _group(kind: str, batch: int, keys: int) -> int:
    if keys == 0 or batch % keys:
        what = f"k_{kind} has {keys} rows for a batch of {batch}"
        raise ValueError(f"{what}; the batch must be a multiple of them (neighbouring samples share a row)")
    return batch // keys
