"""Blocks of an online recipe: groups, rewards, judge, updates, noise, weights, and when to stop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from diffalign.objectives.blend import BLENDS, Blend
from diffalign.objectives.mining import Threshold
from diffalign.train.blocks import Source, at_least, is_share


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
    among: Literal["alone", "group", "pairs"] = "alone"
    """alone: a score of each picture. group: mean win rate among the pictures of its prompt (Pref-GRPO),
    which a pairwise scorer decides, or the sign of score gaps; the score itself of a groupwise scorer
    (pareto). pairs: the same, and a scorer of single pictures is asked to compare two (unifiedreward)."""
    word: str = ""
    """combination pareto: what is put before a prompt to ask for this reward; empty takes <reward 1> for the
    first, and so on."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        is_share({"noise": self.noise})
        if self.looks == "latents" and self.compares:
            raise ValueError("a latent reward scores latents alone: set among=alone, or looks=pictures")

    @property
    def compares(self) -> bool:
        """Whether it compares the pictures of a prompt, which it must be given together."""
        return self.among != "alone"


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


def course(value: str | Blend) -> Blend:
    """The course of a parameter set, by its published name or as it is."""
    return BLENDS[value] if isinstance(value, str) else value
