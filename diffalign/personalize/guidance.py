"""Text and people at inference: guidance with two weights, and mixtures of people.

Guidance, with no text and nobody, text alone, and text and a person:

    e = e(0, 0) + w_c (e(c, 0) - e(0, 0)) + w_u (e(c, u) - e(c, 0))

Mixtures at the level of outputs, sum_i a_i Attention_i, are linear in a: every person is a segment of the
user tokens with a scale of its own. At the level of tokens, Attention(sum_i a_i U_i), they are not, and cost
one person's time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Level = Literal["output", "token"]


@dataclass(frozen=True, kw_only=True)
class Condition:
    """User tokens and the scales of their segments, as attention layers take them."""

    tokens: Tensor
    """(P, S K, D), S segments of K tokens one after the other, for each of P people."""
    scale: Tensor
    """(P, S)."""

    def scaled(self, factor: float) -> Condition:
        """The same, all scales multiplied."""
        return Condition(tokens=self.tokens, scale=self.scale * factor)


def guide(empty: Tensor, text: Tensor, user: Tensor, *, text_weight: float, user_weight: float) -> Tensor:
    """Guided prediction of e(0, 0), e(c, 0) and e(c, u), all of one shape.

    A ``user_weight`` of ``text_weight`` leaves e(c, 0) out, which is the usual guidance with the person in
    the conditional branch.
    """
    return empty + text_weight * (text - empty) + user_weight * (user - text)


def conditional(text: Tensor, user: Tensor, *, text_weight: float, user_weight: float) -> Tensor:
    """What stands for e(c, u) in guidance that knows one weight, so that it gives ``guide``.

    e(0, 0) + w_c (this - e(0, 0)) is ``guide(e(0, 0), text, user)``.
    """
    return text + user_weight / text_weight * (user - text)


def mixture(people: Sequence[tuple[Tensor, float]], level: Level = "output") -> Condition:
    """One condition of several people with weights, which may be negative: ``u1 - u2 + u3``.

    Args:
        people: (K, D) tokens of each, and a weight.
        level: "output" mixes what attention to each person gives; "token" mixes the tokens.

    Raises:
        ValueError: nobody, tokens of several shapes, a weight that is not finite, another level, or weights
            of tokens that do not sum to 1.
    """
    if not people or {tokens.shape for tokens, _ in people} != {people[0][0].shape} or people[0][0].ndim != 2:
        shapes = ", ".join(str(tuple(tokens.shape)) for tokens, _ in people) or "nobody"
        raise ValueError(f"a mixture is of people with tokens of one shape (K, D), got {shapes}")
    tokens = torch.stack([one for one, _ in people])  # (S, K, D)
    weights = torch.tensor([weight for _, weight in people], dtype=torch.float32)
    if not bool(weights.isfinite().all()):
        raise ValueError(f"weights of people are {weights.tolist()}; they must be finite")
    if level == "output":
        return Condition(tokens=tokens.flatten(0, 1)[None], scale=weights[None])
    if level != "token":
        raise ValueError(f"people are mixed at the level of output or token, not {level!r}")
    total = float(weights.sum())
    if not math.isclose(total, 1.0, abs_tol=1e-4):
        raise ValueError(
            f"weights of tokens sum to {total:g}, which are then of another size than any person's: let them "
            'sum to 1, or mix at level="output"'
        )
    mixed = torch.einsum("s,skd->kd", weights.to(tokens), tokens)
    return Condition(tokens=mixed[None], scale=torch.ones(1, 1))


def interpolate(first: Tensor, second: Tensor, amount: float, level: Level = "output") -> Condition:
    """``1 - amount`` of one person, (K, D), and ``amount`` of another; beyond 0 and 1 it goes on."""
    return mixture([(first, 1 - amount), (second, amount)], level)


def each(people: Sequence[Tensor]) -> Condition:
    """P people side by side, (K, D) each: one for every picture of a batch.

    Raises:
        ValueError: nobody, or tokens of several shapes.
    """
    if len({one.shape for one in people}) != 1 or people[0].ndim != 2:
        raise ValueError("people side by side must have tokens of one shape (K, D)")
    return Condition(tokens=torch.stack(list(people)), scale=torch.ones(len(people), 1))
