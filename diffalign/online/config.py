"""Every option of an online run. A recipe with a ``rollout`` block is this, as YAML."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from diffalign.config import Names
from diffalign.diffusion.rollout_options import RolloutOptions
from diffalign.diffusion.transitions import Dpm2, Ode
from diffalign.objectives import objectives
from diffalign.objectives.advantages import FlowGrpo, Rule, advantages
from diffalign.objectives.base import name_of
from diffalign.objectives.blend import BLENDS, Blend
from diffalign.objectives.combine import Combination
from diffalign.objectives.mining import Threshold
from diffalign.objectives.online_pairs import OnlinePairs
from diffalign.objectives.steps import OnlineObjective, online_name_of, online_objectives
from diffalign.train.blocks import RunConfig, Source, at_least, is_share

UNIONS = {
    "objective": online_objectives.get,
    "objective.objective": objectives.get,
    "objective.objective.pair": objectives.get,
    "advantage": advantages.get,
}
"""Blocks of a recipe whose class hangs on their name."""


def _rule_name(rule: type[Any]) -> str:
    found = [n for n in advantages.names() if advantages.get(n) is rule]
    return found[0] if found else f"{rule.__module__}:{rule.__qualname__}"


NAMES: Names = {
    "objective": online_name_of,
    "objective.objective": name_of,
    "objective.objective.pair": name_of,
    "advantage": _rule_name,
}
"""The way back, for blocks that do not hold their name themselves."""


@dataclass(frozen=True, kw_only=True)
class PromptConfig(Source):
    """The prompts that pictures are made for."""

    path: str | None = None
    """File of prompts (txt, csv, json or jsonl); null takes training prompts of the shapes world (world)."""


@dataclass(frozen=True, kw_only=True)
class GroupConfig:
    """How many pictures an iteration makes, over all processes."""

    prompts: int = 8
    """Prompts of an iteration."""
    images: int = 8
    """G, pictures of each prompt."""
    same_start: bool = False
    """One first latent x_T for all pictures of a prompt (DanceGRPO, D3PO)."""
    reference_share: float = 0.0
    """Share of each prompt's pictures that the reference makes, rounded down (online_pairs only)."""
    batch: int = 16
    """Pictures that a process makes at once."""
    side: int | None = None
    """Side of the pictures in pixels; null takes the model's own."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        at_least(1, {"prompts": self.prompts, "batch": self.batch, "side": self.side})
        at_least(2, {"images": self.images})
        is_share({"reference_share": self.reference_share})


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """One reward."""

    scorer: str
    """Scorer in one word: name, name=weights, name?option=value, or the address of a reward server."""
    weight: float = 1.0
    """Factor on the reward, or on its advantages (see combination)."""
    looks: Literal["pictures", "latents"] = "pictures"
    """What it scores: decoded pictures, or latents (a latent reward model)."""
    noise: float = 0.0
    """latents: share of the time at which they are noised before they are scored."""
    among: Literal["alone", "group"] = "alone"
    """alone: a score of each picture. group: mean win rate among the pictures of its prompt, by pairs
    (Pref-GRPO), which a pairwise scorer decides, or the sign of score gaps."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        is_share({"noise": self.noise})
        if self.looks == "latents" and self.among == "group":
            raise ValueError("a latent reward scores latents alone: set among=alone, or looks=pictures")


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """Who compares the candidates of a step that branches, and what makes a pair of them."""

    scorer: str
    """Scorer in one word, of noisy latents (looks: latents) or of pictures (looks: x0_hat)."""
    looks: Literal["latents", "x0_hat"] = "latents"
    """latents: a latent reward model at the noisy latents themselves (LPO). x0_hat: a scorer of pictures at
    the decoded prediction of the clean picture, one more pass of the network for each candidate (SPO)."""
    scale: float = 1.0
    """Factor on scores before p = softmax over the best and the worst; scores of CLIP type are logits
    already."""
    threshold: Threshold = field(default_factory=Threshold)
    """What p_best - p_worst must exceed."""

    def __post_init__(self) -> None:
        """Check the range."""
        if not self.scale > 0:
            raise ValueError(f"judge.scale is {self.scale}; it must be above 0")


@dataclass(frozen=True, kw_only=True)
class UpdateConfig:
    """What is done with the pictures of an iteration."""

    updates: int = 1
    """Optimizer steps of each pass over an iteration's rows, which are shared out evenly."""
    passes: int = 1
    """Passes over an iteration's rows (inner epochs)."""
    micro_batch: int = 16
    """Rows of a pass of the network on one process: recorded steps, noised pictures or sides of pairs."""
    step_share: float = 1.0
    """Share of each picture's recorded steps that is trained on, drawn at random."""
    recompute_old: bool = False
    """Ask the behaviour policy again for its log-probabilities, on the micro-batches of training: with half
    precision, those of the rollout differ by more than the clip."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        counts = {"updates": self.updates, "passes": self.passes, "micro_batch": self.micro_batch}
        at_least(1, counts)
        if not 0 < self.step_share <= 1:
            raise ValueError(f"update.step_share is {self.step_share}; it must be in (0, 1]")


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """How pictures are noised again, for methods on the forward process."""

    draws: int = 4
    """Times of each picture; each falls into its own equal part of the range."""
    low: float = 0.0
    """Lower end of the times, as a share of the whole time (0 is clean)."""
    high: float = 1.0
    """Upper end."""
    scheduled: bool = False
    """Take times of the rollout's own schedule, the nearest to those drawn."""
    per: Literal["image", "group"] = "image"
    """image: own times and noise. group: the same for all pictures of a prompt, one noise at all times
    (DGPO)."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        at_least(1, {"draws": self.draws})
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(
                f"noise.low and high are {self.low} and {self.high}; 0 <= low < high <= 1 is needed"
            )


@dataclass(frozen=True, kw_only=True)
class WeightsConfig:
    """The parameter sets beside the trained one."""

    old: str | Blend = "copy"
    """What the policy is measured from: copy (the weights at the start of the iteration), a published course
    (nft, nft_late, crd_fast, crd_half, crd_sampling, crd_old, dgpo), or a block of a course."""
    sampling: str | Blend = "policy"
    """Who makes the pictures: policy, old, or weights of their own that follow by a course."""
    anchor: float = 0.3
    """Decay of the running average that AWM is held to."""

    def __post_init__(self) -> None:
        """Check names and range."""
        for name, value, others in (("old", self.old, ()), ("sampling", self.sampling, ("policy", "old"))):
            if isinstance(value, str) and value not in (*BLENDS, *others):
                known = ", ".join((*others, *BLENDS))
                raise ValueError(f"weights.{name} is {value!r}; it takes {known}, or a block of a course")
        if not 0 <= self.anchor < 1:
            raise ValueError(f"weights.anchor is {self.anchor}; it must be in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class StopConfig:
    """When reward hacking ends a run: the trained reward rises while the held-out judge falls."""

    drop: float = 0.05
    """By how much the held-out win rate must have fallen from its best."""
    patience: int = 2
    """Validations in a row in which it has."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        is_share({"drop": self.drop})
        at_least(1, {"patience": self.patience})


@dataclass(frozen=True, kw_only=True)
class OnlineConfig(RunConfig):
    """One online run. A step of it is an iteration: pictures, rewards, updates."""

    objective: OnlineObjective[Any]
    """What is asked of the pictures or of their steps."""
    data: PromptConfig = field(default_factory=PromptConfig)
    """The prompts."""
    rollout: RolloutOptions
    """How pictures are made, and which steps draw noise."""
    groups: GroupConfig = field(default_factory=GroupConfig)
    """How many pictures an iteration makes."""
    rewards: tuple[RewardConfig, ...] = ()
    """Who judges pictures; not needed where a judge compares candidates."""
    patience: float = 600.0
    """Seconds that the scores of one batch of pictures may take."""
    advantage: Rule = field(default_factory=FlowGrpo)
    """How rewards become advantages."""
    combination: Combination = field(default_factory=Combination)
    """How several rewards become one advantage; the weights are those of the rewards."""
    judge: JudgeConfig | None = None
    """Who compares candidates, where the rollout branches."""
    update: UpdateConfig = field(default_factory=UpdateConfig)
    """What is done with the pictures of an iteration."""
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    """How pictures are noised again."""
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    """The parameter sets beside the trained one."""
    compare_with: Literal["start", "behaviour", "previous"] = "start"
    """The reference: the start of the run (policy.reference), the weights that made the pictures, or those of
    the iteration before."""
    stop: StopConfig | None = None
    """End the run on reward hacking; null only warns."""

    def __post_init__(self) -> None:
        """Check what must fit together; everything here fails before any weight is loaded."""
        super().__post_init__()
        if self.data.path is None and self.data.world is None:
            raise ValueError("data.path is missing: name a file of prompts, or a data.world block")
        if self.precision in ("fp64", "fp16"):
            why = "no pictures can be made" if self.precision == "fp64" else "the loss scaler drops updates"
            raise ValueError(f"precision is {self.precision}, in which {why}: take bf16 or fp32")
        if self.combination.weights:
            raise ValueError("combination.weights are those of the rewards: set rewards[k].weight instead")
        if self.objective.needs_reference and self.policy.reference == "none":
            raise ValueError("the objective compares with a reference: policy.reference must not be none")
        self._check_rollout()
        self._check_rewards()

    def _check_rollout(self) -> None:
        options, kind = self.rollout, self.objective.batch
        free = options.stochastic.which == "none" or isinstance(options.transition, Ode | Dpm2)
        if kind == "steps" and free:
            raise ValueError(
                "the objective compares probabilities of steps, and the rollout draws no noise: set "
                "rollout.stochastic.which to all or window, and rollout.transition to ddim, cps or flow_sde"
            )
        if kind != "steps" and options.branching.candidates > 1:
            raise ValueError(f"rollout.branching is for objectives on steps, and this one sees {kind}")
        if self.groups.reference_share and kind != "pairs":
            raise ValueError("groups.reference_share is for online_pairs: others learn of own pictures")

    def _check_rewards(self) -> None:
        branches = self.rollout.branching.candidates > 1
        if branches != (self.judge is not None):
            raise ValueError(
                "rollout.branching.candidates above 1 and judge go together: the judge compares candidates"
            )
        if branches and self.objective.unit != "pair":
            raise ValueError("a rollout that branches makes pairs of steps: take objective lpo or spo")
        if not branches and not self.rewards:
            raise ValueError("rewards is empty: name at least one, for example rewards=[{scorer: hpsv2.1}]")

    @property
    def mines(self) -> bool:
        """Whether pairs are mined from the candidates of a step."""
        return self.judge is not None

    def names(self) -> Names:
        """See RunConfig."""
        return NAMES

    def settings(self) -> dict[str, Any]:
        """See RunConfig."""
        made = self.groups.prompts * self.groups.images
        return super().settings() | {
            "pictures an iteration": made,
            "rewards": [r.scorer for r in self.rewards],
        }

    def check_processes(self, processes: int) -> None:
        """See RunConfig."""
        rows = self.groups.prompts * self.groups.images
        whole = self.objective.whole_groups or self.objective.unit != "row" or self.objective.batch == "pairs"
        if whole and self.groups.prompts % processes:
            raise ValueError(
                f"groups.prompts is {self.groups.prompts}, and the pictures of a prompt must be on one "
                f"process: {processes} processes must divide it"
            )
        if rows % processes:
            raise ValueError(f"groups.prompts x images is {rows}; {processes} processes must divide it")


def course(value: str | Blend) -> Blend:
    """The course of a parameter set, by its published name or as it is."""
    return BLENDS[value] if isinstance(value, str) else value


__all__ = ["NAMES", "UNIONS", "OnlineConfig", "OnlinePairs", "course"]
