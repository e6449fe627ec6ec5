"""Attention to users beside a layer's own processor, whatever that computes.

out = own + s softmax(Q K_user^T / sqrt D) V_user W_out / rescale

with the layer's queries (normed, before any rotation) of the picture alone. Exact, since output weights are
linear; it costs queries and output weights once more. It is how FLUX takes users (in its double blocks), and
what the processors of other families are tested against.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diffalign.attention.decoupled import Implementation, add_user_attention
from diffalign.attention.user_keys import UserKeys, scale_of, split_heads


class UserDelegate(nn.Module):
    """A layer with its own processor, and attention to users added to its output; none without keys."""

    def __init__(self, own: Any, users: UserKeys | None, implementation: Implementation = "auto") -> None:
        """Take the layer's own processor, and the layer's user weights, where it has some."""
        super().__init__()
        self.own, self.users, self.implementation = own, users, implementation

    @property
    def _attention_backend(self) -> Any:
        """Where diffusers' ``set_attention_backend`` puts its choice: the own processor's."""
        return self.own._attention_backend

    @_attention_backend.setter
    def _attention_backend(self, backend: Any) -> None:
        self.own._attention_backend = backend

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
        user_tokens: Tensor | None = None,
        user_scale: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """What the own processor gives; in joint attention users add to the picture's part, the first."""
        rotated = {} if image_rotary_emb is None else {"image_rotary_emb": image_rotary_emb}
        found: Tensor | tuple[Tensor, ...] = self.own(
            attn,
            hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            attention_mask=attention_mask,
            **rotated,
        )
        if user_tokens is None or self.users is None:
            return found
        added = self._to_users(self.users, attn, hidden_states, user_tokens, user_scale)
        return found + added if isinstance(found, Tensor) else (found[0] + added, *found[1:])

    def _to_users(
        self, users: UserKeys, attn: Any, x: Tensor, tokens: Tensor, scale: Tensor | None
    ) -> Tensor:
        """What attention to users adds to the layer's output (B, N, C)."""
        q = split_heads(attn.to_q(x), attn.heads, attn.norm_q)
        k, v = (part.to(q.dtype) for part in users(tokens))
        out = add_user_attention(
            torch.zeros_like(q), q, k, v, scale_of(scale, q), implementation=self.implementation
        ).flatten(2)
        layer = attn.to_out[0]
        linear: Tensor = layer(out) - layer(out.new_zeros(1, 1, out.shape[-1]))  # a LoRA's part too, no bias
        return linear / getattr(attn, "rescale_output_factor", 1.0)
