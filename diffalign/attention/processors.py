"""Processors for diffusers' attention layers that take user tokens and carry their own attention backend.

The processors that diffusers sets on a UNet or on SD3 call torch's attention directly: a backend set on the
model is silently without effect there. And a layer warns of arguments that its processor does not name: so
all layers of a model, also those without users, get one of these. Users travel in
``cross_attention_kwargs`` or ``joint_attention_kwargs``: user_tokens (B / G, M, W), and user_scale, (B,) or
(B, S).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from diffalign.attention.attend import Attend
from diffalign.attention.decoupled import Implementation, add_user_attention, decoupled_attention

KEY_STD = 0.02
"""Standard deviation of key weights that are not copied from the text's."""
Inner = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


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
            ValueError: tokens of another width.
        """
        if tokens.ndim != 3 or tokens.shape[-1] != self.width:
            what = f"user tokens are {tuple(tokens.shape)}; this model takes (users, tokens, {self.width})"
            raise ValueError(f"{what}: use the encoder that belongs to it")
        tokens = tokens.to(_last(self.k).weight.dtype)
        k, v = (layer(tokens).unflatten(-1, (self.heads, -1)) for layer in (self.k, self.v))
        return (k if self.norm is None else self.norm(k)), v


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
            return self._with_users(q, k, v, mask, user_tokens, _scale(user_scale, q))

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
            scale = _scale(user_scale, q)
            return add_user_attention(base, q.to(base.dtype), k, v, scale, implementation=self.implementation)

        return _joint_layer(attn, hidden_states, encoder_hidden_states, self.attend, add)


def attach_users(
    model: Any,
    width: int,
    *,
    rank: int = 0,
    backend: str = "auto",
    implementation: Implementation = "auto",
) -> dict[str, UserKeys]:
    """Give a diffusers UNet or transformer processors that take user tokens of this width.

    Until the values are trained the model computes what it did, bit for bit where text runs in the same
    kernel. A backend that the model was given before (``install.set_attention``) stays, for "auto". Returns
    the new weights by the name of their layer, in fp32 on the model's device; they are also submodules of the
    model.

    Raises:
        ValueError: it has users already, or layers whose processors have no such form here, or no text.
        RuntimeError: the backend cannot be used on the model's device.
    """
    given = processors_of(model)
    check_processors(given)
    attend = _attend(given, backend, model.device)
    layers = {name: model.get_submodule(name.removesuffix(".processor")) for name in given}
    made = {
        name: _processor(attn, given[name], width, rank, attend, implementation)
        for name, attn in layers.items()
    }
    users = {
        n: p.users.to(model.device)
        for n, p in made.items()
        if isinstance(p, UserAttention | UserJointAttention)
    }
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


def check_processors(given: dict[str, Any]) -> None:
    """Refuse processors that have no form of ours.

    Raises:
        ValueError: users are attached already, or a layer is of another kind.
    """
    known = ("AttnProcessor", "AttnProcessor2_0", "JointAttnProcessor2_0")
    for name, processor in given.items():
        if isinstance(processor, UserAttention | UserJointAttention):
            raise ValueError(f"users are attached already ({name}); load the model anew to attach others")
        ours = isinstance(processor, PlainAttention | JointAttention)
        if not ours and type(processor).__name__ not in known:
            kind = type(processor).__name__
            raise ValueError(
                f"{name} has a {kind}; attention can be replaced in SD, SDXL, PixArt and SD3 models"
            )


def is_joint(processor: Any) -> bool:
    """Whether it is a processor of SD3's joint attention, diffusers' or ours."""
    return isinstance(processor, JointAttention) or type(processor).__name__ == "JointAttnProcessor2_0"


def _attend(given: dict[str, Any], backend: str, device: torch.device) -> Attend:
    present = [p.attend for p in given.values() if isinstance(p, PlainAttention | JointAttention)]
    return present[0] if present and backend == "auto" else Attend(backend, device)


def _processor(
    attn: Any, given: Any, width: int, rank: int, attend: Attend, implementation: Implementation
) -> PlainAttention | UserAttention | JointAttention | UserJointAttention:
    """What replaces a processor of diffusers."""
    head_width = attn.inner_dim // attn.heads
    if is_joint(given):
        if attn.add_k_proj is None:
            return JointAttention(attend)
        users = UserKeys(width, attn.heads, head_width, rank=rank, norm=attn.norm_k is not None)
        _copy_keys(users, attn.add_k_proj)
        return UserJointAttention(attend, users, implementation)
    if not attn.is_cross_attention:
        return PlainAttention(attend)
    users = UserKeys(width, attn.heads, head_width, rank=rank)
    _copy_keys(users, attn.to_k)
    return UserAttention(attend, users, implementation)


def _copy_keys(users: UserKeys, text: nn.Linear) -> None:
    """Begin with the text's keys where the shapes allow."""
    if isinstance(users.k, nn.Linear) and users.k.weight.shape == text.weight.shape:
        with torch.no_grad():
            users.k.weight.copy_(text.weight)


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


def _scale(scale: Tensor | None, q: Tensor) -> Tensor:
    return q.new_ones(len(q), dtype=torch.float32) if scale is None else scale


def _unchanged(base: Tensor, q: Tensor) -> Tensor:
    return base


def _split_heads(x: Tensor, heads: int, norm: Any) -> Tensor:
    x = x.unflatten(-1, (heads, -1))  # (B, N, H, D)
    return x if norm is None else norm(x)


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
    q = _split_heads(attn.to_q(x), attn.heads, attn.norm_q)
    k = _split_heads(attn.to_k(context), attn.heads, attn.norm_k)
    v = _split_heads(attn.to_v(context), attn.heads, None)
    x = attn.to_out[1](attn.to_out[0](inner(q, k, v, mask).flatten(2).to(q.dtype)))
    if len(shape) == 4:
        x = x.transpose(-1, -2).reshape(shape)
    out: Tensor = (x + residual if attn.residual_connection else x) / attn.rescale_output_factor
    return out


def _joint_layer(
    attn: Any, x: Tensor, context: Tensor | None, attend: Attend, add: Callable[[Tensor, Tensor], Tensor]
) -> Tensor | tuple[Tensor, Tensor]:
    """A joint attention of SD3; ``add`` gets the picture's part of its output and the picture's queries."""
    q = _split_heads(attn.to_q(x), attn.heads, attn.norm_q)
    k = _split_heads(attn.to_k(x), attn.heads, attn.norm_k)
    v = _split_heads(attn.to_v(x), attn.heads, None)
    if context is None:
        out = add(attend(q, k, v), q).flatten(2).to(q.dtype)
        return attn.to_out[1](attn.to_out[0](out))  # type: ignore[no-any-return]
    q_text = _split_heads(attn.add_q_proj(context), attn.heads, attn.norm_added_q)
    k = torch.cat([k, _split_heads(attn.add_k_proj(context), attn.heads, attn.norm_added_k)], 1)
    v = torch.cat([v, _split_heads(attn.add_v_proj(context), attn.heads, None)], 1)
    out, text = attend(torch.cat([q, q_text], 1), k, v).to(q.dtype).split([x.shape[1], context.shape[1]], 1)
    out = attn.to_out[1](attn.to_out[0](add(out, q).flatten(2)))
    text = text.flatten(2)
    return out, (text if attn.context_pre_only else attn.to_add_out(text))
