"""Attention by a backend that was asked for, or by the fastest one: what a model's attention layers carry."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from diffalign.attention.backends import attention, backend, by_priority, why_not
from diffalign.attention.probe import Problem, fastest

CANDIDATES = ("sdpa_cudnn", "sdpa_flash", "sdpa_efficient")
log = logging.getLogger(__name__)


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
            q=tuple(q.shape), keys=k.shape[1], dtype=str(q.dtype), device=str(q.device), backward=backward
        )
        if problem not in self.chosen:
            self.chosen[problem] = fastest(problem, CANDIDATES)
            log.info("attention of %s: %s", problem.describe(), self.chosen[problem])
        return self.chosen[problem]


def lines(device: torch.device, names: list[str]) -> list[tuple[str, str]]:
    """Name and state of each backend: "usable", or why it cannot train here."""
    return [(name, why_not(name, device) or "usable") for name in names]
