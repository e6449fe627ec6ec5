"""Backends of plain attention: what each can do, why one cannot be used here, and how to call it.

Layout is (B, N, H, D), as in diffusers' dispatcher. Nothing optional is imported before it is used: xformers,
for one, may print warnings, or refuse to load, on import.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module, metadata
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from diffalign.attention.eager import Attention

PREFIX = "diffusers:"
FORWARD_ONLY = ("sage", "_sage", "_flash_3", "_flash_varlen_3")
"""Beginnings of diffusers' names without a gradient: quantised kernels, and flash 3 as registered there."""
HOPPER = 9


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One way to compute attention."""

    name: str
    summary: str
    function: Attention
    why_not: Callable[[torch.device], str | None]
    """Why it cannot be used on a device, or None; looks, but imports nothing optional."""
    backward: bool = True
    masks: bool = True
    """Whether it takes a boolean or an additive mask (B or 1, H or 1, N or 1, L)."""
    wheel: str = ""
    """The optional package that brings it; empty where it needs none."""
    module: str = ""
    """What of that package is imported."""


def names() -> list[str]:
    """All names but those of diffusers, which are ``diffusers:<name>``."""
    return ["auto", *_table()]


def backend(name: str) -> Backend:
    """The backend of this name.

    Raises:
        ValueError: there is none, or ("auto") it is no single one.
    """
    if name.startswith(PREFIX):
        return _of_diffusers(name.removeprefix(PREFIX))
    if name not in _table():
        raise ValueError(f"attention backend {name!r} is none of {', '.join(names())}, {PREFIX}<name>")
    return _table()[name]


def why_not(name: str, device: torch.device) -> str | None:
    """Why this backend cannot train on this device, or None when it can.

    Raises:
        ValueError: there is no such backend.
    """
    if name == "auto":
        return None
    found = backend(name)
    return found.why_not(device) or (None if found.backward else "it has no backward pass: sampling only")


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, name: str = "sdpa") -> Tensor:
    """Attention (B, N, H, D) of q (B, N, H, D) to k and v (B, L, H, D) by one backend ("auto": ``attend``).

    mask is boolean (True counts) or additive, (B or 1, H or 1, N or 1, L).

    Raises:
        ValueError: no such backend, or a mask that it does not take.
        RuntimeError: it has no backward pass but gradients are asked for, or it cannot run these tensors.
    """
    found = backend(name)
    if (
        not found.backward
        and torch.is_grad_enabled()
        and (q.requires_grad or k.requires_grad or v.requires_grad)
    ):
        what = f"attention backend {name} has no backward pass, and gradients are asked for"
        raise RuntimeError(f"{what}; train with auto, or sample under torch.no_grad()")
    if mask is not None and not found.masks:
        raise ValueError(f"attention backend {name} takes no mask; use auto or sdpa_efficient")
    if torch.compiler.is_compiling():
        return found.function(q, k, v, mask)
    reason = _reason(name, q.device)
    if reason:
        raise RuntimeError(f"attention backend {name} cannot be used: {reason}; use auto")
    return _explained(found, q, k, v, mask)


@cache
def _reason(name: str, device: torch.device) -> str | None:
    """``why_not`` of the backend, looked up once: layers ask at every call."""
    return backend(name).why_not(device)


def _explained(found: Backend, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """What the backend gives; its refusal of these shapes says which ones, and the remedy."""
    try:
        return found.function(q, k, v, mask)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, {q.dtype} on {q.device}"
        raise RuntimeError(
            f"attention backend {found.name} cannot run {shapes} ({error}); use auto"
        ) from error


def priority(device: torch.device) -> list[SDPBackend]:
    """Order in which torch's own kernels are tried: cuDNN is the fastest for training on Hopper alone."""
    flash, cudnn = SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION
    hopper = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == HOPPER
    return [*((cudnn, flash) if hopper else (flash, cudnn)), SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def by_priority(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention by the first of torch's own kernels, in the order of ``priority``, that takes the tensors."""
    return _sdpa(priority(q.device))(q, k, v, mask)


@cache
def _table() -> Mapping[str, Backend]:
    one = {
        "sdpa_cudnn": ("cuDNN through torch", SDPBackend.CUDNN_ATTENTION),
        "sdpa_flash": ("flash attention 2 of torch", SDPBackend.FLASH_ATTENTION),
        "sdpa_efficient": (
            "memory-efficient attention of torch; fp32 and masks too",
            SDPBackend.EFFICIENT_ATTENTION,
        ),
        "sdpa_math": ("products and softmax; memory grows with N times L", SDPBackend.MATH),
    }
    found = [
        Backend(name="sdpa", summary="torch chooses", function=_sdpa([]), why_not=_nothing),
        *(_sdpa_backend(name, summary, kind) for name, (summary, kind) in one.items()),
        Backend(
            name="flex",
            summary="FlexAttention of torch, compiled",
            function=_flex,
            why_not=_no_gpu,
            masks=False,
        ),
        _package("fa2", "flash-attn 2", "flash-attn", "flash_attn", _flash),
        _package("fa3", "flash attention 3 for Hopper", "flash-attn-3", "flash_attn_interface", _flash),
        _package("fa4", "flash attention 4", "flash-attn-4", "flash_attn.cute", _flash),
        _package("xformers", "memory_efficient_attention of xformers", "xformers", "xformers.ops", _xformers),
    ]
    return {b.name: b for b in found}


def _sdpa(kinds: Sequence[SDPBackend]) -> Attention:
    """torch's attention by these kernels in this order; none: torch's own choice."""

    def function(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if not kinds:
            return scaled_dot_product_attention(q, k, v, mask).transpose(1, 2)
        with sdpa_kernel(list(kinds), set_priority=True):
            return scaled_dot_product_attention(q, k, v, mask).transpose(1, 2)

    return function


def _sdpa_backend(name: str, summary: str, kind: SDPBackend) -> Backend:
    needs_gpu = kind in (SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
    why = _no_gpu if needs_gpu else _nothing
    return Backend(name=name, summary=summary, function=_sdpa([kind]), why_not=why)


def _package(
    name: str, summary: str, wheel: str, module: str, function: Callable[[str], Attention]
) -> Backend:
    """A backend that an optional package brings."""

    def why_not(device: torch.device) -> str | None:
        return _missing(wheel) or _no_gpu(device)

    return Backend(
        name=name, summary=summary, function=function(module), why_not=why_not, masks=False, wheel=wheel,
        module=module,
    )  # fmt: skip


def _flash(module: str) -> Attention:
    """``flash_attn_func`` of this module."""

    def function(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        found = _loaded(module).flash_attn_func(q, k, v)
        out: Tensor = found[0] if isinstance(found, tuple) else found  # some releases add the log-sum-exp
        return out

    return function


def _xformers(module: str) -> Attention:
    """``memory_efficient_attention`` of this module."""

    def function(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        out: Tensor = _loaded(module).memory_efficient_attention(q, k, v)
        return out

    return function


@cache
def _loaded(module: str) -> Any:
    """An optional package. What it raises (missing libraries, clashing versions) is said with the way out."""
    try:
        return import_module(module)
    except Exception as error:
        raise RuntimeError(f"{module} is installed but does not load ({error}); use auto") from error


@cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def _flex(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    out: Tensor = _compiled_flex()(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)


@cache
def _of_diffusers(name: str) -> Backend:
    """A backend of diffusers' dispatcher. Names that end in hub fetch code at run time and are refused."""

    def function(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        from diffusers.models.attention_dispatch import dispatch_attention_fn

        out: Tensor = dispatch_attention_fn(q, k, v, attn_mask=mask, backend=name)
        return out

    def why_not(device: torch.device) -> str | None:
        from diffusers.models.attention_dispatch import AttentionBackendName

        known = [member.value for member in AttentionBackendName]
        if name not in known:
            return f"diffusers has no such backend; it has {', '.join(known)}"
        return "it fetches code at run time" if name.endswith("_hub") else _unmet(name)

    backward = not name.startswith(FORWARD_ONLY)
    summary = f"{name} of diffusers' dispatcher"
    return Backend(name=PREFIX + name, summary=summary, function=function, why_not=why_not, backward=backward)


def _unmet(name: str) -> str | None:
    """What diffusers says is missing for one of its backends."""
    from diffusers.models import attention_dispatch

    try:
        attention_dispatch._check_attention_backend_requirements(
            attention_dispatch.AttentionBackendName(name)
        )
    except RuntimeError as error:
        return str(error)
    return None


def _missing(wheel: str) -> str | None:
    try:
        metadata.version(wheel)
    except metadata.PackageNotFoundError:
        return f"the package {wheel} is not installed"
    return None


def _no_gpu(device: torch.device) -> str | None:
    return None if device.type == "cuda" else f"it needs a GPU, and the device is {device.type}"


def _nothing(device: torch.device) -> str | None:
    return None
