"""From one reward to advantages: a small rule per published form, found by name.

Images with the same ``group`` are of one prompt, in any order. A group without spread has advantage 0 under
every rule that compares with the group. Several rewards, and rewards that are not finite: ``combine``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from diffalign.objectives.base import State
from diffalign.registry import Registry

SPREAD = 1e-9
"""Groups whose rewards differ by less than this share of their size are without spread: rounding only."""


def groups_of(group: Tensor) -> Tensor:
    """(U, N) bool, which images are in which group, by ascending group."""
    kinds: Tensor = group.unique()
    return kinds[:, None] == group


class Rule(ABC):
    """Turns one reward of a batch into advantages; a frozen dataclass whose fields are its YAML block."""

    paper: ClassVar[str]
    """Where it is from."""

    @abstractmethod
    def of(self, reward: Tensor, group: Tensor, state: State | None) -> Tensor:
        """(N,) advantages of (N,) finite float64 rewards; ``state`` keeps statistics between batches."""


advantages: Registry[type[Rule]] = Registry("advantage rule", package="diffalign.objectives")
"""All rules by name."""


@dataclass(frozen=True, kw_only=True)
class GroupRule(Rule):
    """(r - centre) / (scale + eps), centre and scale over the images of a prompt or of the batch."""

    centre_over: ClassVar[Literal["group", "batch"]] = "group"
    unbiased: ClassVar[bool] = False
    eps: ClassVar[float] = 0.0

    def spread(self, reward: Tensor, own: Tensor) -> Tensor:
        """Scalar scale of the images ``own``, (N,) bool."""
        return standard_deviation(reward[own], self.unbiased) + self.eps

    def of(self, reward: Tensor, group: Tensor, state: State | None) -> Tensor:
        """See Rule."""
        out = torch.zeros_like(reward)
        for own in groups_of(group):
            within = torch.ones_like(own) if self.centre_over == "batch" else own
            if not is_flat(reward[within]):
                out[own] = (reward[own] - self.centre(reward[within])) / self.spread(reward, within)
        return out

    def centre(self, reward: Tensor) -> Tensor:
        """Scalar that is taken off (n,) rewards."""
        return reward.mean()


def is_flat(reward: Tensor) -> bool:
    """Whether (n,) rewards are all the same but for rounding."""
    return bool(reward.max() - reward.min() <= SPREAD * reward.abs().max().clamp(min=1e-300))


def standard_deviation(reward: Tensor, unbiased: bool) -> Tensor:
    """Scalar standard deviation; 0 of a single one."""
    return reward.std(unbiased=unbiased) if len(reward) > 1 else reward.new_zeros(())


@advantages.register("flow_grpo")
@dataclass(frozen=True, kw_only=True)
class FlowGrpo(GroupRule):
    """(r - group mean) / (s + 1e-4), population s of all rewards or of the group (Flow-GRPO)."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2505.05470"
    eps: ClassVar[float] = 1e-4

    global_std: bool = True
    """Standard deviation of all rewards of the batch, so that groups of little spread weigh little."""

    def spread(self, reward: Tensor, own: Tensor) -> Tensor:
        """See GroupRule."""
        return standard_deviation(reward if self.global_std else reward[own], self.unbiased) + self.eps


@advantages.register("verl_omni")
@dataclass(frozen=True, kw_only=True)
class VerlOmni(FlowGrpo):
    """As flow_grpo with the unbiased standard deviation (verl-omni)."""

    paper: ClassVar[str] = "https://github.com/verl-project/verl-omni"
    unbiased: ClassVar[bool] = True


@advantages.register("dance_grpo")
@dataclass(frozen=True, kw_only=True)
class DanceGrpo(GroupRule):
    """(r - mean) / (unbiased s + 1e-8) of the group (DanceGRPO, MixGRPO, Pref-GRPO)."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2505.07818"
    unbiased: ClassVar[bool] = True
    eps: ClassVar[float] = 1e-8


@advantages.register("batch")
@dataclass(frozen=True, kw_only=True)
class WholeBatch(DanceGrpo):
    """As dance_grpo over all images of the batch, whatever their prompt (DanceGRPO without groups)."""

    centre_over: ClassVar[Literal["group", "batch"]] = "batch"


@advantages.register("flow_factory")
@dataclass(frozen=True, kw_only=True)
class FlowFactory(GroupRule):
    """(r - mean) / max(population s, 1e-6) of the group (Flow-Factory)."""

    paper: ClassVar[str] = "https://github.com/X-GenGroup/Flow-Factory"

    def spread(self, reward: Tensor, own: Tensor) -> Tensor:
        """See GroupRule."""
        return standard_deviation(reward[own], self.unbiased).clamp(min=1e-6)


@advantages.register("dr_grpo")
@dataclass(frozen=True, kw_only=True)
class DrGrpo(GroupRule):
    """r - group mean, not scaled (Dr. GRPO, arXiv:2503.20783)."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2503.20783"

    def spread(self, reward: Tensor, own: Tensor) -> Tensor:
        """See GroupRule."""
        return reward.new_ones(())


@advantages.register("trimmed")
@dataclass(frozen=True, kw_only=True)
class Trimmed(GroupRule):
    """As dance_grpo, with mean and s of the group without its lowest rewards (MixGRPO's option)."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2507.21802"
    unbiased: ClassVar[bool] = True
    eps: ClassVar[float] = 1e-8

    ratio: float = 0.34
    """Share of a group's images left out of the statistics, rounded down; in [0, 1)."""

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0 <= self.ratio < 1:
            raise ValueError(f"advantage.ratio is {self.ratio}; it must be in [0, 1)")

    def rest(self, reward: Tensor) -> Tensor:
        """(m,) highest of (n,) rewards."""
        return reward.sort().values[int(self.ratio * len(reward)) :]

    def centre(self, reward: Tensor) -> Tensor:
        """See GroupRule."""
        return self.rest(reward).mean()

    def spread(self, reward: Tensor, own: Tensor) -> Tensor:
        """See GroupRule."""
        return standard_deviation(self.rest(reward[own]), self.unbiased) + self.eps


@advantages.register("ddpo")
@dataclass(frozen=True, kw_only=True)
class DdpoTracker(Rule):
    """(r - mean) / (population s + 1e-6) of the prompt's latest rewards, of all batches (DDPO).

    Until a prompt has ``min_count`` of them, mean and s are those of the batch.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2305.13301"

    size: int = 16
    """Rewards kept for each prompt."""
    min_count: int = 16
    """Rewards from which on a prompt has statistics of its own."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 1 <= self.min_count <= self.size:
            raise ValueError(
                f"advantage.min_count is {self.min_count} and size {self.size}; 1 <= min_count <= size needed"
            )

    def of(self, reward: Tensor, group: Tensor, state: State | None) -> Tensor:
        """See Rule; ``group`` must number prompts for good, as statistics outlive the batch."""
        out, kept = torch.zeros_like(reward), {} if state is None else state
        for number in group.unique().tolist():
            own, name = group == number, f"advantage.ddpo.{number}"
            seen = torch.cat([kept.get(name, reward[:0]).to(reward), reward[own]])[-self.size :]
            kept[name] = seen
            source = reward if len(seen) < self.min_count else seen
            if not is_flat(source):
                out[own] = (reward[own] - source.mean()) / (standard_deviation(source, False) + 1e-6)
        return out


# ---------------------------------------------------------------------- selectors


@advantages.register("best_worst")
@dataclass(frozen=True, kw_only=True)
class BestWorst(Rule):
    """+1 for the first best and -1 for the first worst image of each prompt, 0 for the others: a pair."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2505.05470"

    def of(self, reward: Tensor, group: Tensor, state: State | None) -> Tensor:
        """See Rule."""
        out = torch.zeros_like(reward)
        for own in groups_of(group):
            place = own.nonzero().flatten()
            if not is_flat(reward[own]):
                out[place[reward[own].argmax()]], out[place[reward[own].argmin()]] = 1.0, -1.0
        return out


@advantages.register("best_only")
@dataclass(frozen=True, kw_only=True)
class BestOnly(Rule):
    """1 for the best images of each prompt and 0 for the others: weights for SFT."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2505.05470"

    def of(self, reward: Tensor, group: Tensor, state: State | None) -> Tensor:
        """See Rule; where all images are equal, all are best."""
        best = torch.where(groups_of(group), reward, -torch.inf).max(1, keepdim=True).values  # (U, 1)
        return (groups_of(group) & (reward == best)).any(0).to(reward.dtype)


@advantages.register("raw")
@dataclass(frozen=True, kw_only=True)
class Raw(Rule):
    """The reward itself (reward-weighted regression)."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2305.13301"

    def of(self, reward: Tensor, group: Tensor, state: State | None) -> Tensor:
        """See Rule."""
        return reward.clone()


@advantages.register("best_of_n")
@dataclass(frozen=True, kw_only=True)
class BestOfN(DanceGrpo):
    """As dance_grpo, then 0 but for the highest and lowest images of each prompt (DanceGRPO for video)."""

    keep: int = 8
    """Images kept of each prompt, half of them the best ones."""

    def of(self, reward: Tensor, group: Tensor, state: State | None) -> Tensor:
        """See Rule."""
        out = super().of(reward, group, state)
        for own in groups_of(group):
            place = own.nonzero().flatten()[reward[own].argsort(stable=True)]
            half = min(self.keep // 2, len(place) // 2)
            out[place[half : len(place) - half]] = 0
        return out
