"""Exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from diffalign.train.shard import local, put


class Ema:
    """Averaged copy, in fp32 at least, of named parameters."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        """Start the average at the present weights; ``decay`` in [0, 1)."""
        self.parameters, self.decay, self.steps = dict(parameters), decay, 0
        self.average = {
            k: p.detach().to(torch.promote_types(p.dtype, torch.float32)).clone()
            for k, p in parameters.items()
        }

    @torch.no_grad()
    def update(self) -> None:
        """Take in the present weights; the first steps average faster, to forget the start soon."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        now = [
            local(p.detach()).to(a.dtype)
            for p, a in zip(self.parameters.values(), self.average.values(), strict=True)
        ]
        torch._foreach_lerp_([local(a) for a in self.average.values()], now, 1 - decay)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Put the averaged weights into the model inside."""
        kept = {k: p.detach().clone() for k, p in self.parameters.items()}
        self._fill(self.average)
        try:
            yield
        finally:
            self._fill(kept)

    def state(self) -> dict[str, Tensor]:
        """Tensors for the checkpoint."""
        return dict(self.average)

    def load(self, state: Mapping[str, Tensor], steps: int) -> None:
        """Take over a checkpoint's tensors."""
        for key, value in self.average.items():
            put(value, state[key])
        self.steps = steps

    @torch.no_grad()
    def _fill(self, values: Mapping[str, Tensor]) -> None:
        for key, parameter in self.parameters.items():
            parameter.copy_(values[key])
