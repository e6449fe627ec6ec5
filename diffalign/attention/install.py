"""One attention backend for all layers of a model, and what a run's log says of it."""

from __future__ import annotations

from typing import Any

import torch

from diffalign.attention.attend import Attend, lines
from diffalign.attention.backends import names
from diffalign.attention.processors import (
    JointAttention,
    PlainAttention,
    check_processors,
    is_joint,
    processors_of,
)


def set_attention(model: Any, backend: str = "auto") -> Attend:
    """Give every attention layer of a diffusers UNet or transformer this backend, before users are attached.

    ``set_attention_backend`` of diffusers is without effect on UNets and SD3, whose processors call torch
    directly. The model computes what it did, up to the kernel's rounding.

    Raises:
        ValueError: no such backend, users are attached already, or layers of another kind than those of SD,
            SDXL, PixArt and SD3.
        RuntimeError: the backend cannot be used on the model's device.
    """
    given = processors_of(model)
    check_processors(given)
    attend = Attend(backend, model.device)
    model.set_attn_processor(
        {name: (JointAttention if is_joint(p) else PlainAttention)(attend) for name, p in given.items()}
    )
    return attend


def attention_of(model: Any) -> Attend | None:
    """The backend that ``set_attention`` or ``attach_users`` gave a model; None where diffusers' own runs."""
    found = (getattr(p, "attend", None) for p in getattr(model, "attn_processors", {}).values())
    return next((a for a in found if isinstance(a, Attend)), None)


def attention_lines(model: Any) -> list[str]:
    """What computes a model's attention, and why other backends cannot train on its device."""
    attend = attention_of(model)
    if attend is None:
        return ["attention   diffusers' own; torch chooses the kernel (policy.attention names another)"]
    device = torch.device(model.device)
    return [f"attention   {_used(attend, device)}", *_not_here(device)]


def chosen_lines(model: Any) -> list[str]:
    """What "auto" measured as the fastest, one line for each shape that came so far."""
    attend = attention_of(model)
    chosen = {} if attend is None else attend.chosen
    return [f"attention   {name} for {problem.describe()}" for problem, name in chosen.items()]


def _used(attend: Attend, device: torch.device) -> str:
    if attend.name != "auto":
        return attend.name
    how = "sdpa" if device.type != "cuda" else "the fastest of torch's kernels, measured for each shape"
    return f"auto: {how}"


def _not_here(device: torch.device) -> list[str]:
    """Backends by the reason for which they cannot train here."""
    reasons: dict[str, list[str]] = {}
    for name, state in lines(device, names()):
        if state != "usable":
            reasons.setdefault(state, []).append(name)
    return [f"            not {', '.join(some)}: {reason}" for reason, some in reasons.items()]
