"""Every option of a training run: the only list of them. A recipe is this, as YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from diffalign.config import dump
from diffalign.data.select import SelectOptions
from diffalign.diffusion.corrupt import Corruptor, GaussianNoise
from diffalign.diffusion.spaces import Native, Space
from diffalign.diffusion.timesteps import Discrete, Timesteps, Uniform
from diffalign.diffusion.weights import ErrorWeight
from diffalign.objectives import Objective
from diffalign.policy.guidance import Guidance
from diffalign.policy.long_prompts import LongPrompts
from diffalign.policy.lora import AdapterConfig
from diffalign.policy.reference import ReferenceOptions
from diffalign.train.losers import LoserConfig
from diffalign.train.terms import NAMES, Term, check_corruptor, check_kept_errors, check_space, check_terms

Precision = Literal["fp32", "bf16", "fp16", "fp64"]
VAE_FACTOR = 8
"""Pixels along each side of a latent; equal for every family that diffalign knows."""


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
class DataConfig:
    """The preferences that are learnt from."""

    path: str | None = None
    """File or folder with preferences; null where they come from the shapes world."""
    labels: str | None = None
    """File that diffalign score --write made of the data at path; null takes the data's own labels."""
    format: str = "auto"
    """Name of the reader, or auto."""
    world: WorldConfig | None = None
    """Make preferences in the shapes world instead of reading them."""
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
    cache: str = "outputs/cache"
    """Folder of cached latents and text embeddings, shared by all runs."""

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
class TrainConfig:
    """One training run."""

    policy: PolicyConfig
    """The model that is aligned."""
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
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer and schedule."""
    steps: int = 1000
    """Optimizer steps."""
    batch: int = 16
    """Comparison units per step, over all processes and accumulation."""
    accumulate: int = 1
    """Parts that a step's batch is cut into, to save memory."""
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
        """Check ranges and what must fit together; everything here fails before any weight is loaded."""
        at_least(1, {"steps": self.steps, "batch": self.batch, "accumulate": self.accumulate})
        at_least(0, {"checkpoint_every": self.checkpoint_every, "seed": self.seed})
        at_least(1, {"keep_checkpoints": self.keep_checkpoints})
        self._check_timesteps()
        if self.batch % self.accumulate:
            raise ValueError(
                f"batch {self.batch} cannot be cut into accumulate={self.accumulate} equal parts"
            )
        if self.precision == "fp64" and (self.evaluate.prompts or self.validate.every):
            raise ValueError(
                "precision is fp64, in which no pictures can be made (text encoders and VAE stay in fp32): "
                "set evaluate.prompts=0 and validate.every=0"
            )
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}; it must be in [0, 1), for example 0.99")
        if self.data.path is None and self.data.world is None:
            raise ValueError(
                "data.path is missing: name a file or folder of preferences, or a data.world block"
            )
        if self.losers is not None and self.policy.adapter is None:
            raise ValueError("former LoRAs make losers, and all weights are trained: set policy.adapter")
        check_terms(self.all_terms, self.policy.reference)
        check_corruptor(self.corruptor, self.ema)
        if self.data.reference_errors is not None:
            check_kept_errors(self.corruptor, self.all_terms, self.policy.reference)
        for term in self.all_terms:
            check_space(term.space, self.error_weight)
        if self.keep == "best" and not (self.validate.every and self.validate.judge):
            raise ValueError("keep: best needs validate.every and validate.judge, which decide what is best")

    @property
    def all_terms(self) -> tuple[Term, ...]:
        """The objective and the further terms."""
        return Term(objective=self.objective, space=self.space), *self.terms

    @property
    def needs_reference(self) -> bool:
        """Whether anything asks the reference: a term of the loss, or the corruptor."""
        return self.corruptor.asks == "reference" or any(t.objective.needs_reference for t in self.all_terms)

    def _check_timesteps(self) -> None:
        if not isinstance(self.timesteps, Discrete):
            return
        steps = self.timesteps.steps
        if not steps or not all(0 <= t < 1000 for t in steps):
            raise ValueError(f"timesteps.steps is {list(steps)}; it must name timesteps from 0 to 999")


def recipe_text(config: TrainConfig) -> str:
    """The resolved recipe as YAML, every option written out."""
    return dump(config, NAMES)
