"""Every option of an online run. A recipe with a ``rollout`` block is this, as YAML."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from diffalign.config import ConfigError, Names
from diffalign.diffusion.rollout_options import RolloutOptions
from diffalign.diffusion.transitions import (
    Cps,
    DanceSde,
    Ddim,
    Dpm2,
    FlowSde,
    LiteralDdim,
    Ode,
    Transition,
)
from diffalign.label.rules import RuleOptions, rules
from diffalign.objectives import objectives
from diffalign.objectives.advantages import FlowGrpo, Rule, advantages
from diffalign.objectives.base import name_of
from diffalign.objectives.combine import Combination
from diffalign.objectives.d3po import D3PO
from diffalign.objectives.dgpo import DGPO
from diffalign.objectives.online_pairs import OnlinePairs
from diffalign.objectives.steps import OnlineObjective, online_name_of, online_objectives
from diffalign.objectives.value import LearnedValue
from diffalign.online.blocks import (
    GroupConfig,
    JudgeConfig,
    NoiseConfig,
    PromptConfig,
    RewardConfig,
    StopConfig,
    UpdateConfig,
    WeightsConfig,
)
from diffalign.policy.reference import PoolReference
from diffalign.registry import RegistryError
from diffalign.train.blocks import RunConfig, at_least

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
    pairing: RuleOptions = field(default_factory=RuleOptions)
    """Options of objective.rule, which makes the pairs of online_pairs."""
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
        at_least(0.001, {"patience": self.patience})
        if self.needs_reference and self.policy.reference == "none":
            raise ValueError("the run asks the reference: policy.reference must not be none")
        if isinstance(self.policy.reference, PoolReference) and self.policy.reference.draw == "unit":
            raise ValueError(
                "policy.reference.draw is unit, which online runs cannot draw: take step or latest"
            )
        self._check_rollout()
        self._check_value()
        self._check_rewards()
        self._check_rows()

    def _check_rollout(self) -> None:
        options, kind = self.rollout, self.objective.batch
        if kind == "steps":
            self._check_steps()
        if kind != "steps" and options.branching.candidates > 1:
            raise ValueError(f"rollout.branching is for objectives on steps, and this one sees {kind}")
        if self.groups.reference_share and kind != "pairs":
            raise ValueError("groups.reference_share is for online_pairs: others learn of own pictures")

    def _check_steps(self) -> None:
        """Refuse rollouts without the steps that the objective compares."""
        options = self.rollout
        if options.stochastic.which == "none" or draws_no_noise(options.transition):
            raise ValueError(
                "the objective compares probabilities of steps, and the rollout draws no noise: set "
                "rollout.stochastic.which to all or window, and rollout.transition to ddim, cps or flow_sde"
            )
        chosen = options.stochastic.chosen(options.steps, 0)
        if not chosen:
            raise ValueError(
                "no step of the rollout may draw noise: raise rollout.steps, widen rollout.stochastic.first "
                "and stop, or set stochastic.last_step=true"
            )
        if self.mines and options.branching.first > max(chosen):
            raise ValueError(
                f"rollout.branching.first is {options.branching.first}, so no step of the rollout branches: "
                f"the last that draws noise is {max(chosen)}"
            )
        if "drift" in self.objective.needs and not options.recorder.means:
            raise ValueError(
                "the objective compares means with the old policy: set rollout.recorder.means=true"
            )

    def _check_value(self) -> None:
        """Refuse a learned baseline where no recorded step has an advantage of its own to take it off."""
        if not isinstance(self.advantage, LearnedValue):
            return
        kind = self.objective
        if kind.batch != "steps" or kind.unit != "row" or kind.whole_groups or "advantage" not in kind.needs:
            raise ValueError(
                f"advantage value is taken off each recorded step with its latents, and "
                f"{online_name_of(type(kind))} asks for no advantage of single steps: take objective dpok, "
                "ddpo, grpo, grpo_guard or flow_dppo with a rollout that draws noise, or another advantage"
            )
        if self.combination.how != "rewards":
            raise ValueError(
                f"advantage value foretells the weighted sum of the rewards, and combination.how is "
                f"{self.combination.how}: set it to rewards"
            )

    def _check_rows(self) -> None:
        """Refuse options that the objective's rows have no use for."""
        if isinstance(self.objective, OnlinePairs):
            _check_rule(self.objective.rule)
        elif self.pairing != RuleOptions():
            raise ValueError("pairing is of the pairs of online_pairs: leave it out with this objective")
        if isinstance(self.objective, D3PO) and not self.groups.same_start:
            raise ValueError("d3po compares trajectories from one first latent: set groups.same_start=true")
        if isinstance(self.objective, DGPO) and self.noise.per != "group":
            raise ValueError(
                "dgpo compares the images of a prompt at the same t and noise: set noise.per=group"
            )
        if self.update.step_share < 1 and (self.objective.batch != "steps" or self.mines):
            raise ValueError(
                "update.step_share is of the steps of pictures, and here the pictures or the pairs of "
                "candidates are trained on: leave it at 1"
            )
        if self.stop is not None and not (self.validate.every and self.validate.judge):
            raise ValueError("stop needs validate.every and validate.judge, a held-out judge: set both")

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
        if self.combination.how == "pareto":
            self._check_asked()
        elif any(r.word for r in self.rewards):
            raise ValueError("rewards[k].word asks for one of several rewards: set combination.how=pareto")
        if self.combination.how == "gated" and len(self.rewards) < 2:
            raise ValueError(
                "combination gated needs a check and at least one other reward: name both, in order"
            )

    def _check_asked(self) -> None:
        """Refuse what Parrot's prompts, each of which asks for one reward, cannot be shared out to."""
        count, words = len(self.rewards), self.words
        if self.objective.batch == "pairs":
            raise ValueError(
                "combination pareto weighs pictures, and online_pairs makes pairs of them: set "
                "objective.rule to pareto, and combination.how to rewards"
            )
        if any(r.weight != 1 for r in self.rewards):
            raise ValueError("combination pareto takes rewards as they are: leave rewards[k].weight at 1")
        if count < 2 or len(set(words)) < count:
            raise ValueError(
                "combination pareto asks for one of several rewards with each prompt: name two or more, with "
                "different words"
            )
        if self.groups.prompts % count:
            raise ValueError(
                f"groups.prompts is {self.groups.prompts}, and combination pareto makes pictures of each "
                f"prompt for each of {count} rewards: take a multiple of {count}"
            )

    @property
    def words(self) -> tuple[str, ...]:
        """What is put before prompts to ask for each of the rewards; empty where prompts ask for none."""
        if self.combination.how != "pareto":
            return ()
        return tuple(r.word or f"<reward {k}>" for k, r in enumerate(self.rewards, 1))

    @property
    def mines(self) -> bool:
        """Whether pairs are mined from the candidates of a step."""
        return self.judge is not None

    @property
    def needs_reference(self) -> bool:
        """Whether anything asks the reference: the objective, or the pictures that it makes."""
        return bool(self.objective.needs_reference or self.groups.reference_share)

    @property
    def whole_groups(self) -> bool:
        """Whether the pictures of a prompt must be on one process."""
        unit, kind = self.objective.unit, self.objective.batch
        compared = unit == "group" or kind == "pairs" or (unit == "pair" and not self.mines)
        return compared or self.objective.whole_groups or any(r.compares for r in self.rewards)

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
        if self.whole_groups and self.groups.prompts % processes:
            raise ConfigError(
                f"groups.prompts is {self.groups.prompts}, and the pictures of a prompt must be on one "
                f"process: {processes} processes must divide it"
            )
        if rows % processes:
            raise ConfigError(f"groups.prompts x images is {rows}; {processes} processes must divide it")


def _check_rule(name: str) -> None:
    try:
        rules.get(name)
    except RegistryError as error:
        raise ValueError(f"objective.rule: {error}") from error


def draws_no_noise(transition: Transition) -> bool:
    """Whether a kind of steps is deterministic, by its kind or by its options."""
    match transition:
        case Ddim(eta=level) | LiteralDdim(eta=level) | DanceSde(eta=level):
            return level == 0
        case Cps(noise_level=level) | FlowSde(noise_level=level):
            return level == 0
    return isinstance(transition, Ode | Dpm2)
