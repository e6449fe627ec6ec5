"""Half precision in one place: the denoiser computes in it, and everything around it sees fp32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

HALF = (torch.bfloat16, torch.float16)
DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Arithmetic by its name in recipes."""


def best_device() -> torch.device:
    """Where pictures are made fastest here: a GPU, Apple's, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def arithmetic(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Autocast to a half dtype; nothing for fp32 and fp64, whose arithmetic is that of the weights."""
    return torch.autocast(device.type, dtype) if dtype in HALF else nullcontext()


@contextmanager
def computing(module: nn.Module, device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Inside, ``module`` runs under autocast to a half dtype and answers in fp32; for fp32 nothing changes.

    A sampler then adds up its steps in fp32. accelerate does the same to the module that is trained, but not
    to the frozen copy of it, and only once training has begun.
    """
    from accelerate.utils import convert_outputs_to_fp32

    if dtype not in HALF:
        yield
        return
    before = vars(module).get("forward")  # accelerate's, where training has begun
    module.forward = convert_outputs_to_fp32(torch.autocast(device.type, dtype)(module.forward))
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before
