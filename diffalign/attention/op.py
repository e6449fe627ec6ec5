"""Decoupled attention as an operator of torch: torch.compile and checkpointing see one opaque node.

The text is absent when its tensors have no tokens; the output then is ``base`` plus the users' part.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffalign.attention import launch
from diffalign.attention.launch import Inputs
from diffalign.attention.sizes import Sizes, sizes_of


@torch.library.custom_op("diffalign::decoupled_attention", mutates_args=())
def fused(
    q: Tensor,
    k_text: Tensor,
    v_text: Tensor,
    k_user: Tensor,
    v_user: Tensor,
    scale: Tensor,
    lengths: Tensor | None,
    base: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Output (B, N, H, D) and log-sum-exp (B, H, slots, N); arguments as in ``decoupled_attention``, but
    scale is (B, S) and lengths int32.
    """
    x = _inputs(q, k_text, v_text, k_user, v_user, scale, lengths)
    return launch.forward(x, None if base is None else base.contiguous(), _sizes(x))


@torch.library.custom_op("diffalign::decoupled_attention_backward", mutates_args=())
def fused_backward(
    grad: Tensor,
    q: Tensor,
    k_text: Tensor,
    v_text: Tensor,
    k_user: Tensor,
    v_user: Tensor,
    scale: Tensor,
    lengths: Tensor | None,
    out: Tensor,
    lse: Tensor,
    text_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k_text, v_text, k_user, v_user, scale; those of the text are empty unless asked for."""
    x, grad = _inputs(q, k_text, v_text, k_user, v_user, scale, lengths), grad.contiguous()
    sizes = _sizes(x)
    dq, delta = launch.backward_queries(x, out, grad, lse, sizes)
    first = 0 if text_gradient else sizes.text
    partial = launch.backward_keys(x, grad, lse, delta, sizes, first=first)
    (dk_text, dk_user), (dv_text, dv_user) = (_shared(p, sizes, first, q.dtype) for p in partial)
    ds = delta[:, :, sizes.slots - sizes.segments :].sum((1, 3)).to(scale.dtype)
    return dq, dk_text, dv_text, dk_user, dv_user, ds


def _shared(partial: Tensor, sizes: Sizes, first: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Sum of (splits, B, keys, H, D) over the splits and over the samples that share keys: text, user."""
    text, user = partial[:, :, : sizes.text - first], partial[:, :, sizes.text - first :]
    return _reduced(text, sizes.text_group, dtype), _reduced(user, sizes.user_group, dtype)


def _reduced(partial: Tensor, group: int, dtype: torch.dtype) -> Tensor:
    splits, batch, *rest = partial.shape
    return partial.reshape(splits, batch // group, group, *rest).sum((0, 2)).to(dtype)


def _inputs(
    q: Tensor,
    k_text: Tensor,
    v_text: Tensor,
    k_user: Tensor,
    v_user: Tensor,
    scale: Tensor,
    lengths: Tensor | None,
) -> Inputs:
    """The kernels' view: contiguous. That is free for what linear layers give."""
    return Inputs(
        q=q.contiguous(),
        k_text=k_text.contiguous(),
        v_text=v_text.contiguous(),
        k_user=k_user.contiguous(),
        v_user=v_user.contiguous(),
        scale=scale.float().contiguous(),
        lengths=None if lengths is None else lengths.contiguous(),
    )


def _sizes(x: Inputs) -> Sizes:
    return sizes_of(x.q, x.k_text, x.v_text, x.k_user, x.v_user, x.scale)


@fused.register_fake
def _(
    q: Tensor,
    k_text: Tensor,
    v_text: Tensor,
    k_user: Tensor,
    v_user: Tensor,
    scale: Tensor,
    lengths: Tensor | None,
    base: Tensor | None,
) -> tuple[Tensor, Tensor]:
    slots = scale.shape[1] + (k_text.shape[1] > 0)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    return out, q.new_empty(q.shape[0], q.shape[2], slots, q.shape[1], dtype=torch.float32)


@fused_backward.register_fake
def _(
    grad: Tensor,
    q: Tensor,
    k_text: Tensor,
    v_text: Tensor,
    k_user: Tensor,
    v_user: Tensor,
    scale: Tensor,
    lengths: Tensor | None,
    out: Tensor,
    lse: Tensor,
    text_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, tokens, heads, width = k_text.shape
    text = (batch, tokens if text_gradient else 0, heads, width)
    dk_text, dv_text = k_text.new_empty(text), v_text.new_empty(text)
    dq, dk_user, dv_user = (x.new_empty(x.shape) for x in (q, k_user, v_user))
    return dq, dk_text, dv_text, dk_user, dv_user, scale.new_empty(scale.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, base = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.adds = base is not None
    # Without text the backward pass never reads the output; q stands in for it.
    ctx.save_for_backward(*tensors, tensors[0] if ctx.adds else output[0], output[1])


def _backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 8
    text_gradient = bool(ctx.needs_input_grad[1] or ctx.needs_input_grad[2])
    gradients: list[Tensor | None] = list(fused_backward(grad, *ctx.saved_tensors, text_gradient))
    if not text_gradient:
        gradients[1] = gradients[2] = None
    return *gradients, None, grad if ctx.adds else None


fused.register_autograd(_backward, setup_context=_setup_context)
