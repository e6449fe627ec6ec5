"""Blocks that every training run has, offline and online: the model, the optimizer, the proof."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from diffalign.config import Names
from diffalign.policy.guidance import Guidance
from diffalign.policy.long_prompts import LongPrompts
from diffalign.policy.lora import AdapterConfig
from diffalign.policy.reference import ReferenceOptions
from diffalign.world.population import PopulationConfig

Precision = Literal["fp32", "bf16", "fp16", "fp64"]


def at_least(low: float, options: Mapping[str, float | None]) -> None:
    """Check options, by name, against their least value; None is none given.

    Raises:
        ValueError: one is below ``low``.
    """
    for name, value in options.items():
        if value is not None and not value >= low:
            raise ValueError(f"{name} is {value}; it must be at least {low:g}")


def is_share(options: Mapping[str, float]) -> None:
    """Check options, by name, that are shares of a whole.

    Raises:
        ValueError: one is outside [0, 1].
    """
    for name, value in options.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}; it must be in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """The model that is aligned."""

    model: str
    """Local diffusers folder, or a hub id where allow_download is true."""
    adapter: AdapterConfig | None = field(default_factory=AdapterConfig)
    """LoRA to train; null trains all weights of the denoiser."""
    reference: ReferenceOptions = "auto"
    """What the policy is compared with: auto, off (LoRA switched off), start (frozen copy) or none; ema
    (follows slowly) and pool (former checkpoints), also as blocks with options; {name: lora, source: ...}.
    """
    guidance: Guidance | None = None
    """Make pictures with a second model in the unconditional branch (NPO): {} takes the trained LoRA."""
    long_prompts: LongPrompts | None = None
    """Encode prompts sentence by sentence, so that none is cut at 77 tokens; null encodes as usual."""
    text_length: int = 32
    """T5 tokens of SD3-type models; 256 for the released SD3."""
    attention: str | None = None
    """Attention backend of all layers, see docs/attention.md: auto takes the fastest on a GPU; null leaves
    diffusers' own.
    """
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a quarter more time."""
    allow_download: bool = False
    """Whether a hub id may be fetched."""

    def __post_init__(self) -> None:
        """Check ranges."""
        at_least(1, {"text_length": self.text_length})
        if self.guidance is not None and self.guidance.negative == "self" and self.adapter is None:
            raise ValueError("guidance.negative is self, and all weights are trained: train a LoRA (adapter)")


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """Preferences that simulated people give on pictures of the base model (shapes world only), which are
    drawn with the steps and the guidance of ``evaluate``.
    """

    taste: str = "large"
    """Named taste of the voter; see docs/shapes_world.md."""
    images: int = 600
    """Pictures of the base model that are voted on."""
    per_prompt: int = 4
    """Pictures of each prompt; all their pairs are voted on."""
    ask: Literal["votes", "likes", "rankings"] = "votes"
    """Votes on pairs, likes and dislikes of single pictures, or rankings of lists."""
    list_length: int = 4
    """Pictures in a ranking; per_prompt should be a multiple of it."""
    temperature: float = 0.4
    """Noise of the votes (Bradley-Terry), in s.d. of the taste."""
    careless: float = 0.0
    """Share of votes given at random."""
    flip: float = 0.0
    """Share of votes and likes that are turned round afterwards; ties are not."""
    scorers: tuple[str, ...] = ()
    """Scorers (name or name=weights) that judge the pictures; their labels (smpo) go beside the votes."""
    rule: str | None = None
    """Make the pairs by this rule of diffalign score --pairs, from the scorers, instead of by votes."""
    captions: Literal["prompt", "c", "p", "h"] = "prompt"
    """Captions of a pair's sides: the prompt; c: what each picture shows; p: the prompt, changed in a detail
    for the loser; h: what each shows, changed in a detail for the loser (DCPO).
    """
    population: PopulationConfig | None = None
    """Many people with tastes of their own in place of one voter; those who are not held out vote."""
    seed: int = 0
    """Seed of prompts, pictures and votes."""

    def __post_init__(self) -> None:
        """Check ranges."""
        at_least(1, {"images": self.images})
        at_least(2, {"per_prompt": self.per_prompt, "list_length": self.list_length})
        if self.ask == "rankings" and self.list_length > self.per_prompt:
            raise ValueError(
                f"list_length is {self.list_length}, but there are {self.per_prompt} pictures of a prompt "
                "(per_prompt) to rank: lower it, or raise per_prompt"
            )
        at_least(0, {"temperature": self.temperature, "seed": self.seed})
        is_share({"careless": self.careless, "flip": self.flip})
        if self.population is not None and (self.ask != "votes" or self.rule or self.captions != "prompt"):
            raise ValueError("data.world.population votes on pairs: leave ask, rule and captions as they are")
        if self.population is not None and self.per_prompt - self.population.apart < 2:
            raise ValueError(
                f"data.world.per_prompt is {self.per_prompt}, of which population.apart keeps "
                f"{self.population.apart}: two at least must be left for those who are trained on"
            )
        self._check_labels()

    def _check_labels(self) -> None:
        """Refuse labels that what is asked cannot have.

        Raises:
            ValueError: as said.
        """
        if self.rule is not None and (self.ask != "votes" or not self.scorers):
            raise ValueError(
                f"data.world.rule is {self.rule!r}, which makes pairs of scores: name scorers, and ask votes"
            )
        if self.captions != "prompt" and self.ask != "votes":
            raise ValueError(
                f"data.world.captions is {self.captions!r}, which is for the sides of pairs: ask votes"
            )
        if self.scorers and self.ask == "likes":
            raise ValueError("data.world.scorers label comparisons, and likes are of one picture: ask votes")
        if self.flip and self.ask == "rankings":
            raise ValueError(
                f"data.world.flip is {self.flip:g}, and rankings have no label to turn: ask votes"
            )


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizer and schedule."""

    name: Literal["adamw", "adamw8bit", "adafactor"] = "adamw"
    """adamw (fused), adamw8bit (needs bitsandbytes and a GPU), adafactor (no relative step)."""
    learning_rate: float = 1e-5
    """Peak learning rate; it is not scaled by the batch."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's averages."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    eps: float = 1e-8
    """AdamW's floor of the denominator."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate after warm-up."""
    warmup: int = 0
    """Steps of linear warm-up."""
    clip_norm: float = 1.0
    """Largest norm of the gradient; 0 switches clipping off."""

    def __post_init__(self) -> None:
        """Check ranges."""
        floors = {"learning_rate": self.learning_rate, "weight_decay": self.weight_decay, "eps": self.eps}
        at_least(0, floors | {"warmup": self.warmup, "clip_norm": self.clip_norm})
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are {self.betas}; both must be in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class ValidateConfig:
    """Pictures and win rates while training, on prompts kept apart for selection."""

    every: int = 0
    """Steps between validations; 0 never validates."""
    prompts: int = 32
    """Prompts of the select split."""
    seeds: int = 2
    """Pictures of each prompt; a judge needs two, whose difference is its unit of measure."""
    judge: str | None = None
    """Scorer that judges; null writes pictures only."""

    def __post_init__(self) -> None:
        """Check ranges."""
        at_least(0, {"every": self.every})
        at_least(1, {"prompts": self.prompts, "seeds": self.seeds})
        if self.judge is not None and self.seeds < 2:
            raise ValueError(f"validate.seeds is {self.seeds}; with validate.judge it must be at least 2")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """The evaluation at the end of the run."""

    prompts: int = 100
    """Held-out prompts; 0 skips the evaluation."""
    seeds: int = 4
    """Pictures of each prompt and model."""
    prompt_file: str | None = None
    """File of held-out prompts; null takes those of the shapes world."""
    part: Literal["report", "select"] = "report"
    """report: prompts that nothing was chosen by. select: those to choose options by, so that trying out many
    leaves the others untouched.
    """
    judges: tuple[str, ...] = ()
    """Held-out scorers; the first is primary. Names, or name=weights."""
    trained_on: tuple[str, ...] = ()
    """Scorers that the training data came from; shown and marked."""
    steps: int = 20
    """Sampling steps."""
    guidance: float = 4.0
    """Classifier-free guidance."""
    side: int | None = None
    """Side of the pictures in pixels; null takes the model's own."""

    def __post_init__(self) -> None:
        """Check ranges."""
        at_least(0, {"prompts": self.prompts, "guidance": self.guidance})
        at_least(1, {"seeds": self.seeds, "steps": self.steps, "side": self.side})
        if self.prompts and self.seeds < 2:
            raise ValueError(
                f"evaluate.seeds is {self.seeds}; judges need at least 2 pictures of each prompt, whose "
                "difference is their unit of measure"
            )


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What is written while training."""

    every: int = 10
    """Steps between lines on the screen; metrics.jsonl has every step."""
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Further places for metrics."""

    def __post_init__(self) -> None:
        """Check ranges."""
        at_least(1, {"every": self.every})


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a run's prompts or preferences come from, as far as both kinds of runs know it."""

    world: WorldConfig | None = None
    """Make preferences in the shapes world instead of reading them."""
    cache: str = "outputs/cache"
    """Folder of cached latents and text embeddings, shared by all runs."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every training run has."""

    policy: PolicyConfig
    """The model that is aligned."""
    objective: Any
    """What is asked of the errors."""
    data: Source = field(default_factory=Source)
    """The preferences that are learnt from."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer and schedule."""
    steps: int = 1000
    """Optimizer steps."""
    precision: Precision = "fp32"
    """Arithmetic of the denoiser; errors, losses and optimizer stay in fp32 at least."""
    ema: float = 0.0
    """Decay of the averaged weights that are exported; 0 keeps none."""
    seed: int = 0
    """Seed of everything."""
    threads: int = 0
    """CPU threads of a process; 0 leaves them; where accelerate launch sets one, all cores are shared out."""
    output: str = "outputs/run"
    """Run folder."""
    checkpoint_every: int = 100
    """Steps between checkpoints; 0 writes one at the end only."""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept; the best one stays besides."""
    keep: Literal["last", "best"] = "last"
    """Which weights are exported: the last, or those that won validation."""
    validate: ValidateConfig = field(default_factory=ValidateConfig)
    """Pictures and win rates while training."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """The evaluation at the end of the run."""
    log: LogConfig = field(default_factory=LogConfig)
    """What is written while training."""

    def __post_init__(self) -> None:
        """Check ranges; everything here fails before any weight is loaded."""
        at_least(1, {"steps": self.steps, "keep_checkpoints": self.keep_checkpoints})
        at_least(0, {"checkpoint_every": self.checkpoint_every, "seed": self.seed})
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}; it must be in [0, 1), for example 0.99")
        if self.precision == "fp64" and (self.evaluate.prompts or self.validate.every):
            raise ValueError(
                "precision is fp64, in which no pictures can be made (text encoders and VAE stay in fp32): "
                "set evaluate.prompts=0 and validate.every=0"
            )
        if self.keep == "best" and not (self.validate.every and self.validate.judge):
            raise ValueError("keep: best needs validate.every and validate.judge, which decide what is best")

    @property
    def needs_reference(self) -> bool:
        """Whether anything asks the reference."""
        return bool(self.objective.needs_reference)

    def names(self) -> Names:
        """How blocks whose class hangs on their name get it back, for the resolved recipe."""
        return {}

    def settings(self) -> dict[str, Any]:
        """What a model card says of how the weights were made."""
        return {
            "objective": self.objective,
            "steps": self.steps,
            "learning rate": self.optim.learning_rate,
            "precision": self.precision,
            "seed": self.seed,
        }

    def check_processes(self, processes: int) -> None:
        """Refuse a number of processes that the work cannot be shared by.

        Raises:
            ConfigError: as said.
        """
