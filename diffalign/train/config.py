"""Every option of a training run: the only list of them. A recipe is this, as YAML."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from diffalign.config import ConfigError, Names, dump
from diffalign.data.select import SelectOptions
from diffalign.diffusion.corrupt import Corruptor, GaussianNoise
from diffalign.diffusion.spaces import Native, Space
from diffalign.diffusion.timesteps import Discrete, Timesteps, Uniform
from diffalign.diffusion.weights import ErrorWeight
from diffalign.objectives import Objective
from diffalign.train.blocks import RunConfig, Source, at_least, is_share
from diffalign.train.losers import LoserConfig
from diffalign.train.people import PeopleConfig
from diffalign.train.terms import NAMES, Term, check_corruptor, check_kept_errors, check_space, check_terms

VAE_FACTOR = 8
"""Pixels along each side of a latent; equal for every family that diffalign knows."""


@dataclass(frozen=True, kw_only=True)
class DataConfig(Source):
    """The preferences that are learnt from."""

    path: str | None = None
    """File or folder with preferences; null where they come from the shapes world."""
    labels: str | None = None
    """File that diffalign score --write made of the data at path; null takes the data's own labels."""
    format: str = "auto"
    """Name of the reader, or auto."""
    resolution: int = 512
    """Side in pixels that images are resized and cropped to."""
    random_crop: bool = False
    """Random instead of centre crop (the same for both images of a pair)."""
    flip: bool = False
    """Random horizontal flip (the same for both images of a pair)."""
    ties: Literal["keep", "drop", "soft"] = "drop"
    """What becomes of ties: kept as such, dropped, or kept as soft labels of one half."""
    latents: Literal["sample", "mode"] = "sample"
    """Sample the VAE's posterior afresh at every step, or take its mean."""
    prompt_dropout: float = 0.2
    """Share of comparison units whose prompt is emptied (one draw for both images)."""
    select: SelectOptions | None = None
    """Filters, soft labels, scores and margins from what scorers said (diffalign score --write)."""
    liked_share: float | None = None
    """Of likes and dislikes: draw a like with this probability (0.8 for KTO); null takes each in turn."""
    reverse: bool = False
    """Exchange preferred and dispreferred: what is trained then is what to guide away from (NPO)."""
    curriculum: int = 0
    """Easiest first: the first epoch comes in so many stages of falling score gap; 0 shuffles it too."""
    reference_errors: str | None = None
    """Folder of reference errors that runs share: one that differs in beta, objective or learning rate only
    then skips the reference; null keeps none.
    """
    max_pairs: int | None = None
    """Read at most so many records."""
    max_bad_share: float = 0.01
    """Share of unreadable images above which the run stops."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.resolution < VAE_FACTOR or self.resolution % VAE_FACTOR:
            near = max(VAE_FACTOR, round(self.resolution / VAE_FACTOR) * VAE_FACTOR)
            raise ValueError(
                f"resolution is {self.resolution}; it must be a multiple of {VAE_FACTOR}: take {near}"
            )
        at_least(1, {"max_pairs": self.max_pairs})
        is_share({"prompt_dropout": self.prompt_dropout, "max_bad_share": self.max_bad_share})


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """One training run."""

    objective: Objective
    """What is asked of the errors."""
    data: DataConfig = field(default_factory=DataConfig)
    """The preferences that are learnt from."""
    corruptor: Corruptor = field(default_factory=GaussianNoise)
    """At which noisy latents policy and reference are compared."""
    timesteps: Timesteps = field(default_factory=Uniform)
    """Distribution of t."""
    space: Space = field(default_factory=Native)
    """What an error is: native, pixel, decoder_features, unet_features or dit_features."""
    losers: LoserConfig | None = None
    """Train in rounds on the data's winners and on losers that a former checkpoint makes (SPIN, SePPO)."""
    terms: tuple[Term, ...] = ()
    """Further objectives on the same noisy latents, each with its space and weight."""
    error_weight: ErrorWeight = "one"
    """Factor w(t) on errors, a name or a block {name: discount, gamma: 0.9}; eps_equivalent makes native v
    and flow errors those of eps.
    """
    batch: int = 16
    """Comparison units per step, over all processes and accumulation."""
    accumulate: int = 1
    """Parts that a step's batch is cut into, to save memory."""
    people: PeopleConfig | None = None
    """Train for single people: who judged is a condition of the model (data with user ids); null does not."""

    def __post_init__(self) -> None:
        """Check ranges and what must fit together; everything here fails before any weight is loaded."""
        super().__post_init__()
        at_least(1, {"batch": self.batch, "accumulate": self.accumulate})
        self._check_timesteps()
        if self.batch % self.accumulate:
            raise ValueError(
                f"batch {self.batch} cannot be cut into accumulate={self.accumulate} equal parts"
            )
        if self.data.path is None and self.data.world is None:
            raise ValueError(
                "data.path is missing: name a file or folder of preferences, or a data.world block"
            )
        if self.losers is not None and self.policy.adapter is None:
            raise ValueError("former LoRAs make losers, and all weights are trained: set policy.adapter")
        check_terms(self.all_terms, self.policy.reference, people=self.people is not None)
        self._check_people()
        check_corruptor(self.corruptor, self.ema)
        if self.data.reference_errors is not None:
            check_kept_errors(self.corruptor, self.all_terms, self.policy.reference)
        for term in self.all_terms:
            check_space(term.space, self.error_weight)

    @property
    def all_terms(self) -> tuple[Term, ...]:
        """The objective and the further terms."""
        return Term(objective=self.objective, space=self.space), *self.terms

    @property
    def needs_reference(self) -> bool:
        """Whether anything asks the reference: a term of the loss, or the corruptor."""
        return self.corruptor.asks == "reference" or any(t.objective.needs_reference for t in self.all_terms)

    def names(self) -> Names:
        """See RunConfig."""
        return NAMES

    def settings(self) -> dict[str, Any]:
        """See RunConfig."""
        return super().settings() | {"batch": self.batch}

    def check_processes(self, processes: int) -> None:
        """See RunConfig."""
        if self.batch % (self.accumulate * processes):
            raise ConfigError(
                f"batch is {self.batch}; {processes} processes x accumulate {self.accumulate} must divide it"
            )

    def _check_people(self) -> None:
        if self.people is None:
            return
        if self.policy.adapter is None:
            raise ValueError(
                "people are trained beside a LoRA, and all weights are trained: set policy.adapter"
            )
        if self.data.reference_errors is not None:
            raise ValueError("data.reference_errors cannot be kept in a run with people: leave it out")
        if "direction" in self.people.encoder.needs:
            self._check_directions()
        if self.optim.learning_rate <= 0:
            raise ValueError("optim.learning_rate must be above 0 with people; people.only freezes the LoRA")

    def _check_directions(self) -> None:
        if any(term.objective.data != "pairs" for term in self.all_terms):
            raise ValueError("directions label pairs anew: take an objective of pairs, such as dpo")
        if self.data.reverse:
            raise ValueError(
                "data.reverse turns labels, and directions take none of the data: negate the directions"
            )

    def _check_timesteps(self) -> None:
        if not isinstance(self.timesteps, Discrete):
            return
        steps = self.timesteps.steps
        if not steps or not all(0 <= t < 1000 for t in steps):
            raise ValueError(f"timesteps.steps is {list(steps)}; it must name timesteps from 0 to 999")


def recipe_text(config: RunConfig) -> str:
    """The resolved recipe as YAML, every option written out."""
    return dump(config, config.names())
