"""Processors for diffusers' attention layers that take user tokens and carry their own attention backend.

The processors that diffusers sets on a UNet or on SD3 call torch's attention directly: a backend set on the
model is silently without effect there. And a layer warns of arguments that its processor does not name: so
all layers of a model, also those without users, get one of these. Users travel in
``cross_attention_kwargs`` or ``joint_attention_kwargs``: user_tokens (B / G, M, W), and user_scale, (B,) or
(B, S).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffalign.attention.attend import Attend
from diffalign.attention.decoupled import Implementation, add_user_attention, decoupled_attention
from diffalign.attention.delegate import UserDelegate
from diffalign.attention.user_keys import UserKeys, scale_of, split_heads

REPLACED = ("AttnProcessor", "AttnProcessor2_0", "JointAttnProcessor2_0")
"""Processors of diffusers that have a form of ours."""
FLUX = "FluxAttnProcessor"
"""Stays in charge: it goes through diffusers' dispatcher, and rotates its queries."""
Inner = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


class PlainAttention:
    """A layer of a UNet or cross-attention DiT as diffusers computes it, with a backend; ignores users."""

    def __init__(self, attend: Attend) -> None:
        """Take the backend."""
        self.attend = attend

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        user_tokens: Tensor | None = None,
        user_scale: Tensor | None = None,
    ) -> Tensor:
        """Output shaped like hidden_states (B, N, C) or (B, C, H, W)."""
        return _layer(attn, hidden_states, encoder_hidden_states, attention_mask, temb, self.attend)


class UserAttention(nn.Module):
    """A text cross-attention with decoupled attention to user tokens beside it."""

    def __init__(self, attend: Attend, users: UserKeys, implementation: Implementation = "auto") -> None:
        """Take the backend of the text, and the layer's user weights."""
        super().__init__()
        self.attend, self.users, self.implementation = attend, users, implementation

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        user_tokens: Tensor | None = None,
        user_scale: Tensor | None = None,
    ) -> Tensor:
        """Output shaped like hidden_states; without user_tokens it is the layer's own."""

        def inner(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            if user_tokens is None:
                return self.attend(q, k, v, mask)
            return self._with_users(q, k, v, mask, user_tokens, scale_of(user_scale, q))

        return _layer(attn, hidden_states, encoder_hidden_states, attention_mask, temb, inner)

    def _with_users(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, tokens: Tensor, scale: Tensor
    ) -> Tensor:
        k_user, v_user = (x.to(v.dtype) for x in self.users(tokens))
        q, k = q.to(v.dtype), k.to(v.dtype)
        if mask is not None:  # the fused form knows lengths only
            base = self.attend(q, k, v, mask)
            return add_user_attention(base, q, k_user, v_user, scale, implementation=self.implementation)
        return decoupled_attention(
            q, k, v, k_user, v_user, scale, attend=self.attend, implementation=self.implementation
        )


class JointAttention:
    """A joint attention of SD3 as diffusers computes it, with a backend; users have no effect."""

    def __init__(self, attend: Attend) -> None:
        """Take the backend."""
        self.attend = attend

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        user_tokens: Tensor | None = None,
        user_scale: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Picture (B, N, C), and text (B, L, C) where that was given."""
        return _joint_layer(attn, hidden_states, encoder_hidden_states, self.attend, _unchanged)


class UserJointAttention(nn.Module):
    """A joint attention whose picture tokens (not the text's) also attend to user tokens."""

    def __init__(self, attend: Attend, users: UserKeys, implementation: Implementation = "auto") -> None:
        """Take the backend of the joint attention, and the layer's user weights."""
        super().__init__()
        self.attend, self.users, self.implementation = attend, users, implementation

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        user_tokens: Tensor | None = None,
        user_scale: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Picture (B, N, C), and text (B, L, C) where that was given."""

        def add(base: Tensor, q: Tensor) -> Tensor:
            if user_tokens is None:
                return base
            k, v = (x.to(base.dtype) for x in self.users(user_tokens))
            scale = scale_of(user_scale, q)
            return add_user_attention(base, q.to(base.dtype), k, v, scale, implementation=self.implementation)

        return _joint_layer(attn, hidden_states, encoder_hidden_states, self.attend, add)


def attach_users(
    model: Any,
    width: int,
    *,
    rank: int = 0,
    backend: str = "auto",
    implementation: Implementation = "auto",
    delegate: bool = False,
) -> dict[str, UserKeys]:
    """Give a diffusers UNet or transformer processors that take user tokens of this width.

    Until the values are trained the model computes what it did, bit for bit where text runs in the same
    kernel. A backend that the model was given before (``install.set_attention``) stays, for "auto". With
    ``delegate``, and in FLUX, a layer's own processor stays in charge (see ``attention.delegate``). Returns
    the new weights by the name of their layer, in fp32 on the model's device; they are also submodules of the
    model.

    Raises:
        ValueError: it has users already, or layers whose processors have no such form here, or no text; or a
            backend where the layers' own processors stay in charge.
        RuntimeError: the backend cannot be used on the model's device.
    """
    given = processors_of(model)
    check_processors(given, (*REPLACED, FLUX))
    delegate = delegate or any(_is_flux(processor) for processor in given.values())
    if delegate and backend != "auto":
        raise ValueError(
            f"attention backend {backend} was asked for, and a {type(model).__name__} keeps its own "
            "processors: choose theirs by its set_attention_backend"
        )
    attend = _attend(given, backend, model.device)
    layers = {name: model.get_submodule(name.removesuffix(".processor")) for name in given}
    keys = {name: _user_keys(attn, given[name], width, rank) for name, attn in layers.items()}
    users = {name: one.to(model.device) for name, one in keys.items() if one is not None}
    made = {name: _processor(given[name], keys[name], attend, implementation, delegate) for name in given}
    if not users:
        raise ValueError(
            f"{type(model).__name__} has no layer that attends to text; users cannot be attached"
        )
    model.set_attn_processor(made)
    return users


def processors_of(model: Any) -> dict[str, Any]:
    """Attention processors of a model by name.

    Raises:
        ValueError: it has none that can be replaced.
    """
    if not hasattr(model, "attn_processors"):
        raise ValueError(
            f"the attention of a {type(model).__name__} cannot be replaced: diffusers gives it no "
            "attn_processors; take a UNet or transformer of SD, SDXL, PixArt or SD3"
        )
    found: dict[str, Any] = model.attn_processors
    return found


def check_processors(given: dict[str, Any], known: Sequence[str] = REPLACED) -> None:
    """Refuse processors that are none of the known ones and not ours.

    Raises:
        ValueError: users are attached already, or a layer is of another kind.
    """
    for name, processor in given.items():
        if isinstance(processor, UserAttention | UserJointAttention | UserDelegate):
            raise ValueError(f"users are attached already ({name}); load the model anew to attach others")
        ours = isinstance(processor, PlainAttention | JointAttention)
        if not ours and type(processor).__name__ not in known:
            kind = type(processor).__name__
            raise ValueError(
                f"{name} has a {kind}; attention can be replaced in SD, SDXL, PixArt and SD3 models, and "
                "users can be attached to these and to FLUX.1"
            )


def is_joint(processor: Any) -> bool:
    """Whether it is a processor of SD3's joint attention, diffusers' or ours."""
    return isinstance(processor, JointAttention) or type(processor).__name__ == "JointAttnProcessor2_0"


def _is_flux(processor: Any) -> bool:
    return type(processor).__name__ == FLUX


def _attend(given: dict[str, Any], backend: str, device: torch.device) -> Attend:
    present = [p.attend for p in given.values() if isinstance(p, PlainAttention | JointAttention)]
    return present[0] if present and backend == "auto" else Attend(backend, device)


def _processor(
    given: Any,
    users: UserKeys | None,
    attend: Attend,
    implementation: Implementation,
    delegate: bool,
) -> PlainAttention | UserAttention | JointAttention | UserJointAttention | UserDelegate:
    """What replaces a processor of diffusers."""
    if delegate:
        return UserDelegate(given, users, implementation)
    if users is None:
        return JointAttention(attend) if is_joint(given) else PlainAttention(attend)
    return (UserJointAttention if is_joint(given) else UserAttention)(attend, users, implementation)


def _user_keys(attn: Any, given: Any, width: int, rank: int) -> UserKeys | None:
    """New weights of a layer, None where it attends to no text."""
    joint = is_joint(given) or _is_flux(given)
    text = getattr(attn, "add_k_proj", None) if joint else attn.to_k if attn.is_cross_attention else None
    if text is None:
        return None
    norm = joint and attn.norm_k is not None
    users = UserKeys(width, attn.heads, attn.inner_dim // attn.heads, rank=rank, norm=norm)
    _copy_keys(users, text)
    return users


def _copy_keys(users: UserKeys, text: nn.Linear) -> None:
    """Begin with the text's keys where the shapes allow."""
    if isinstance(users.k, nn.Linear) and users.k.weight.shape == text.weight.shape:
        with torch.no_grad():
            users.k.weight.copy_(text.weight)


def _unchanged(base: Tensor, q: Tensor) -> Tensor:
    return base


def _layer(
    attn: Any, x: Tensor, context: Tensor | None, mask: Tensor | None, temb: Tensor | None, inner: Inner
) -> Tensor:
    """An attention layer of a UNet around ``inner``: norms, projections, residual."""
    residual, shape = x, x.shape
    if attn.spatial_norm is not None:
        x = attn.spatial_norm(x, temb)
    if x.ndim == 4:
        x = x.flatten(2).transpose(1, 2)
    if attn.group_norm is not None:
        x = attn.group_norm(x.transpose(1, 2)).transpose(1, 2)
    if context is None:
        context = x
    elif attn.norm_cross:
        context = attn.norm_encoder_hidden_states(context)
    if mask is not None:
        mask = attn.prepare_attention_mask(mask, context.shape[1], len(x))
        mask = mask.view(len(x), attn.heads, -1, mask.shape[-1])
    q = split_heads(attn.to_q(x), attn.heads, attn.norm_q)
    k = split_heads(attn.to_k(context), attn.heads, attn.norm_k)
    v = split_heads(attn.to_v(context), attn.heads, None)
    x = attn.to_out[1](attn.to_out[0](inner(q, k, v, mask).flatten(2).to(q.dtype)))
    if len(shape) == 4:
        x = x.transpose(-1, -2).reshape(shape)
    out: Tensor = (x + residual if attn.residual_connection else x) / attn.rescale_output_factor
    return out


def _joint_layer(
    attn: Any, x: Tensor, context: Tensor | None, attend: Attend, add: Callable[[Tensor, Tensor], Tensor]
) -> Tensor | tuple[Tensor, Tensor]:
    """A joint attention of SD3; ``add`` gets the picture's part of its output and the picture's queries."""
    q = split_heads(attn.to_q(x), attn.heads, attn.norm_q)
    k = split_heads(attn.to_k(x), attn.heads, attn.norm_k)
    v = split_heads(attn.to_v(x), attn.heads, None)
    if context is None:
        out = add(attend(q, k, v), q).flatten(2).to(q.dtype)
        return attn.to_out[1](attn.to_out[0](out))  # type: ignore[no-any-return]
    q_text = split_heads(attn.add_q_proj(context), attn.heads, attn.norm_added_q)
    k = torch.cat([k, split_heads(attn.add_k_proj(context), attn.heads, attn.norm_added_k)], 1)
    v = torch.cat([v, split_heads(attn.add_v_proj(context), attn.heads, None)], 1)
    out, text = attend(torch.cat([q, q_text], 1), k, v).to(q.dtype).split([x.shape[1], context.shape[1]], 1)
    out = attn.to_out[1](attn.to_out[0](add(out, q).flatten(2)))
    text = text.flatten(2)
    return out, (text if attn.context_pre_only else attn.to_add_out(text))
