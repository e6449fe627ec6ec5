"""From the host to a device without making the host wait."""

from __future__ import annotations

import torch
from torch import Tensor


def send(value: Tensor, device: torch.device | str) -> Tensor:
    """Copy a tensor to a device; towards a GPU the copy is queued, and the host goes on at once.

    Only pinned memory can be copied so: from ordinary memory ``non_blocking`` waits all the same. torch keeps
    the pinned copy until the GPU has read it.
    """
    if torch.device(device).type == "cuda" and value.device.type == "cpu":
        value = value.pin_memory()
    return value.to(device, non_blocking=True)
