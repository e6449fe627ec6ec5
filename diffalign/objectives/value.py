"""Advantages from a learned baseline; the network behind them is in ``diffalign.online.value``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from diffalign.objectives.advantages import Raw, advantages


@advantages.register("value")
@dataclass(frozen=True, kw_only=True)
class LearnedValue(Raw):
    """r - V(x_t, t, c) at each recorded step, V trained by squared error to the reward (DPOK).

    The rule itself hands on the reward; V is taken off step by step, which takes objectives whose every step
    has a loss of its own (dpok, ddpo, grpo, grpo_guard, flow_dppo).
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2305.16381"

    learning_rate: float = 1e-4
    """Of V, by Adam on rewards that are standardised over the replay."""
    batch: int = 256
    """Steps of pictures that an update of V sees, drawn from the replay."""
    inner_steps: int = 5
    """Updates of V in each iteration, before its values are taken off."""
    replay: int = 1000
    """Latest steps of pictures that V is trained on, over all processes; also of iterations before."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("batch", "inner_steps", "replay"):
            if getattr(self, name) < 1:
                raise ValueError(f"advantage.{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(
                f"advantage.learning_rate is {self.learning_rate}; it must be above 0 and finite"
            )
