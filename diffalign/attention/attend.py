"""Attention by a backend that was asked for, or by the fastest one: what a model's attention layers carry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffalign.attention.backends import attention, backend, by_priority, why_not
from diffalign.attention.probe import fastest

CANDIDATES = ("sdpa_cudnn", "sdpa_flash", "sdpa_efficient")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """An attention whose time matters."""

    q: tuple[int, ...]
    """(B, N, H, D)."""
    keys: int
    dtype: torch.dtype
    device: torch.device
    backward: bool

    def describe(self) -> str:
        """Sizes in words."""
        b, n, h, d = self.q
        passes = "forward and backward" if self.backward else "forward"
        return f"batch {b}, {n} queries, {self.keys} keys, {h} heads of {d}, {self.dtype}, {passes}"

    def call(self, name: str) -> Callable[[], None]:
        """A call of this backend on random tensors."""
        b, n, h, d = self.q
        q, k, v = (
            torch.randn(b, tokens, h, d, device=self.device, dtype=self.dtype, requires_grad=self.backward)
            for tokens in (n, self.keys, self.keys)
        )

        def call() -> None:
            with torch.set_grad_enabled(self.backward):
                out = attention(q, k, v, name=name)
            if self.backward:
                torch.autograd.grad(out, (q, k, v), torch.ones_like(out))

        return call


class Attend:
    """Attention (B, N, H, D) of q (B, N, H, D) to k and v (B, L, H, D); mask as in ``backends.attention``.

    "auto" on a GPU measures torch's kernels once per shape, forward and (where gradients are on) backward,
    and takes the fastest. Where nothing can be measured (a compiled region, the capture of a graph), or with
    a mask, the order by the GPU's generation decides (``backends.priority``). Elsewhere torch chooses.
    """

    def __init__(self, name: str = "auto", device: torch.device | str = "cpu") -> None:
        """Check the name against the device.

        Raises:
            ValueError: there is no such backend.
            RuntimeError: it cannot be used on this device at all.
        """
        self.name = name
        reason = None if name == "auto" else backend(name).why_not(torch.device(device))
        if reason:
            raise RuntimeError(f"attention backend {name} cannot be used: {reason}; use auto")
        self.chosen: dict[Problem, str] = {}
        """What "auto" took for each problem so far, for the log of a run."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """See the class and ``backends.attention``, also for what is raised."""
        if self.name != "auto":
            return attention(q, k, v, mask, name=self.name)
        if q.device.type != "cuda":
            return attention(q, k, v, mask, name="sdpa")
        if mask is not None or torch.compiler.is_compiling() or torch.cuda.is_current_stream_capturing():
            return by_priority(q, k, v, mask)
        return attention(q, k, v, name=self._fastest(q, k, v))

    def _fastest(self, q: Tensor, k: Tensor, v: Tensor) -> str:
        backward = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
        problem = Problem(
            q=tuple(q.shape), keys=k.shape[1], dtype=q.dtype, device=q.device, backward=backward
        )
        if problem not in self.chosen:
            calls = {name: problem.call(name) for name in CANDIDATES}
            self.chosen[problem] = fastest(problem.describe(), calls, "sdpa", q.device)
        return self.chosen[problem]


def lines(device: torch.device, names: Sequence[str]) -> list[tuple[str, str]]:
    """Name and state of each backend: "usable", or why it cannot train here."""
    return [(name, why_not(name, device) or "usable") for name in names]
