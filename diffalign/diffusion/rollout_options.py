"""Options of recorded sampling runs: which steps draw noise, how they branch, what is kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch

from diffalign.diffusion.corrupt import draw_seed
from diffalign.diffusion.schedule import Final
from diffalign.diffusion.transitions import Ddim, Ode, Transitions


@dataclass(frozen=True, kw_only=True)
class StochasticSteps:
    """Which steps of a run draw noise, and so have a log-probability."""

    which: Literal["all", "window", "sliding", "random", "none"] = "all"
    """all; a window at a random place (Flow-GRPO-Fast) or one that moves on with the iterations, from the
    noisiest step (MixGRPO); a random set; or none (forward-process methods)."""
    count: int = 2
    """Steps of the window or the random set."""
    first: int = 0
    """First step that may be chosen."""
    stop: int | None = None
    """Step before which the choice ends; null is the end, half the steps are usual for a window."""
    every: int = 25
    """sliding: iterations after which the window moves on by one step; at the end it starts over."""
    last_step: bool = False
    """Whether the very last step may draw noise: on flow its picture is noisy, on VP models it is as DDPO and
    LPO have it."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.count < 1 or self.every < 1 or self.first < 0:
            raise ValueError(
                f"stochastic.count is {self.count}, every {self.every} and first {self.first}; count and "
                "every must be at least 1, first at least 0"
            )

    def chosen(self, steps: int, seed: int, iteration: int = 0) -> list[int]:
        """The stochastic steps of a run of ``steps`` steps.

        Args:
            steps: S.
            seed: of what is random.
            iteration: how many runs there were before, for a window that moves.

        Raises:
            ValueError: there are fewer steps to choose from than ``count``.
        """
        end = steps if self.last_step else steps - 1
        free = list(range(self.first, end if self.stop is None else min(self.stop, end)))
        if self.which in ("all", "none"):
            return free if self.which == "all" else []
        places = len(free) - self.count + 1
        if places < 1:
            raise ValueError(
                f"stochastic.count is {self.count}, and there are {len(free)} steps to choose from: make it "
                "smaller, or the range (first, stop) or the run longer"
            )
        if self.which == "random":
            order = torch.randperm(
                len(free), generator=torch.Generator().manual_seed(draw_seed("steps", seed))
            )
            return sorted(free[i] for i in order[: self.count].tolist())
        place = iteration // self.every if self.which == "sliding" else draw_seed("window", seed)
        return free[place % places : place % places + self.count]


@dataclass(frozen=True, kw_only=True)
class Branching:
    """Several candidates from one latent, which a scorer compares (LPO, SPO)."""

    candidates: int = 1
    """K next latents at each stochastic step; 1 does not branch."""
    first: int = 0
    """First step that branches; 4 of 20 for SPO."""
    go_on: Literal["random", "best"] = "random"
    """Candidate that the run goes on from."""
    score_at: Literal["next", "current"] = "next"
    """Time that candidates are scored at: that of the state they are in, or, as LPO's code has it, that of
    the state they come from."""

    def __post_init__(self) -> None:
        """Check the range."""
        if self.candidates < 1:
            raise ValueError(f"branching.candidates is {self.candidates}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Recorder:
    """What is kept of a run."""

    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of latents. In a half dtype the run itself goes on from the rounded ones, so that its log-probabilities
    are those of what was kept."""
    device: Literal["cpu", "same"] = "cpu"
    """Where latents are kept."""
    means: bool = False
    """Keep the means of the behaviour policy too, in fp32, which grpo_guard and flow_dppo need."""

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of latents."""
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.dtype]


@dataclass(frozen=True, kw_only=True)
class RolloutOptions:
    """A sampling run; its fields are the rollout's YAML block."""

    steps: int = 20
    """S."""
    guidance: float = 5.0
    """Scale g of pred = pred_0 + g (pred_c - pred_0); 1 asks no unconditional prediction."""
    transition: Transitions = field(default_factory=Ddim)
    """Kind of the stochastic steps."""
    otherwise: Transitions = field(default_factory=Ode)
    """Kind of the other steps: ode or dpm2."""
    stochastic: StochasticSteps = field(default_factory=StochasticSteps)
    """Which steps draw noise."""
    branching: Branching = field(default_factory=Branching)
    """Candidates of each step."""
    recorder: Recorder = field(default_factory=Recorder)
    """What is kept."""
    final: Final | None = None
    """Where the last step of a VP run ends: first (some noise is left), clean, or null, as the pipeline's
    scheduler is set."""
