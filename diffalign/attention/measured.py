"""Whether the fused kernels are the faster form of a decoupled attention on this GPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from diffalign.attention.eager import eager
from diffalign.attention.probe import fastest
from diffalign.attention.sizes import Sizes


def describe(sizes: Sizes, dtype: torch.dtype, backward: bool) -> str:
    """Sizes in words."""
    text = f"{sizes.text} text keys" if sizes.text else "added to a base"
    users = f"{sizes.user} user keys in {sizes.segments}"
    shared = f"shared by {sizes.text_group} and {sizes.user_group}"
    passes = "forward and backward" if backward else "forward"
    rows = f"batch {sizes.batch}, {sizes.queries} queries, {sizes.heads} heads of {sizes.width}"
    return f"decoupled: {rows}, {text}, {users}, {shared}, {dtype}, {passes}"


def tensors(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Random q, k_text, v_text, k_user, v_user, scale (B, S) that ask for gradients."""
    text = (sizes.batch // sizes.text_group, sizes.text, sizes.heads, sizes.width)
    user = (sizes.batch // sizes.user_group, sizes.user, sizes.heads, sizes.width)
    rows = (sizes.batch, sizes.queries, sizes.heads, sizes.width)
    found = [torch.randn(shape, device=device, dtype=dtype) for shape in (rows, text, text, user, user)]
    return [x.requires_grad_() for x in (*found, torch.ones(sizes.batch, sizes.segments, device=device))]


def form(name: str, sizes: Sizes, base: Tensor | None) -> Callable[..., Tensor]:
    """The fused or the eager form as a function of ``tensors``."""

    def by_torch(q: Tensor, kt: Tensor, vt: Tensor, ku: Tensor, vu: Tensor, s: Tensor) -> Tensor:
        return eager(q, kt, vt, ku, vu, s, None, base, sizes)

    def by_kernels(q: Tensor, kt: Tensor, vt: Tensor, ku: Tensor, vu: Tensor, s: Tensor) -> Tensor:
        from diffalign.attention.op import fused

        out: Tensor = fused(q, kt, vt, ku, vu, s, None, base)[0]
        return out

    return by_torch if name == "eager" else by_kernels


def _refusable(call: Callable[[], None]) -> Callable[[], None]:
    """The call; a GPU with too little shared memory for a kernel refuses it like any other."""
    from triton.runtime.errors import OutOfResources

    def run() -> None:
        try:
            call()
        except OutOfResources as error:
            raise RuntimeError(str(error)) from error

    return run


@cache
def faster(sizes: Sizes, dtype: torch.dtype, device: torch.device, backward: bool) -> str:
    """ "fused" or "eager", whichever takes less time for these sizes; measured once, see ``probe``.

    Raises:
        ValueError: the file of earlier choices is damaged.
    """
    x = tensors(sizes, dtype, device)
    base = None if sizes.text else torch.randn_like(x[0])
    leaves = [t for t in x if t.numel()]

    def call(name: str) -> Callable[[], None]:
        function = form(name, sizes, base)

        def run() -> None:
            with torch.set_grad_enabled(backward):
                out = function(*x)
            if backward:
                torch.autograd.grad(out, leaves, torch.ones_like(out))

        return run

    calls = {name: _refusable(call(name)) for name in ("fused", "eager")}
    return fastest(describe(sizes, dtype, backward), calls, "eager", device)
