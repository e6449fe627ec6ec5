"""From an online recipe to a run: prompts, policy, iterations, export, evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffalign.assets import asset
from diffalign.attention.install import attention_lines
from diffalign.config import load
from diffalign.data.split import normalise
from diffalign.evaluate.judge import load_judges
from diffalign.evaluate.prompts import read_prompts
from diffalign.label.judges import refuse_unknown
from diffalign.objectives.online_pairs import OnlinePairs
from diffalign.online.config import UNIONS
from diffalign.online.config import OnlineConfig as OnlineConfig
from diffalign.online.groups import Groups
from diffalign.online.trainer import OnlineTrainer
from diffalign.policy import Policy
from diffalign.train.checkpoint import load_checkpoint, name_of
from diffalign.train.config import recipe_text
from diffalign.train.core import Core
from diffalign.train.finish import Run, finish_run, warn_of_overlap
from diffalign.train.plan import check_optimizer, latent_elements
from diffalign.train.progress import Screen
from diffalign.train.setup import checkpoint_of, claim, make_accelerator, make_policy
from diffalign.train.terms import canonical
from diffalign.train.trackers import Trackers, check_trackers
from diffalign.train.validate import Validator
from scorers import Spec
from scorers.latent import latent_scorers


def load_online(recipe: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> OnlineConfig:
    """Read and check an online recipe.

    Raises:
        ConfigError: a misspelt key, a wrong value, or parts that do not fit; nothing has been loaded yet.
    """
    source = recipe if isinstance(recipe, Mapping) else asset(str(recipe))
    config = load(OnlineConfig, source, overrides, unions=UNIONS)
    check_optimizer(config.optim)
    return config


def training_prompts_of(config: OnlineConfig) -> list[str]:
    """Prompts that pictures are made for.

    Raises:
        FileNotFoundError: no file at data.path.
        PromptFileError: it cannot be read.
    """
    if config.data.path is not None:
        return [p.prompt for p in read_prompts(asset(config.data.path))]
    from diffalign.world.votes import training_prompts

    assert config.data.world is not None
    return [str(p) for p in training_prompts(config.data.world)[0]]


def align_online(config: OnlineConfig, resume: str | Path | None = None) -> Run:
    """Train a policy on rewards of its own pictures, and evaluate it; see ``diffalign.align``.

    Raises:
        ConfigError: the work cannot be shared by the processes.
        ValueError: a scorer cannot be used as the recipe says.
        RewardError: a reward failed, on whichever process.
        CheckpointError: there is nothing to resume from, or it does not fit.
        DivergedError: training blew up.
    """
    source = checkpoint_of(Path(resume)) if resume else None
    accelerator = make_accelerator(config)
    made = config.groups.prompts * config.groups.images
    screen = Screen(accelerator.is_main_process, config.steps, made, config.log.every)
    _preflight(config)
    prompts = training_prompts_of(config)
    groups = Groups(prompts, config.groups, config.seed, config.words)
    captions = frozenset(map(normalise, prompts))
    if accelerator.is_main_process and config.evaluate.prompts:
        warn_of_overlap(config, captions)
    policy = make_policy(config, accelerator.device)
    config = _canonical(config, policy)
    for line in plan_lines(config, policy):
        screen.say(line)
    run = claim(config, resume, accelerator)
    screen.say(f"run folder  {run.root}")
    kept = config.needs_reference or policy.adapter is not None
    policy.set_reference(config.policy.reference if kept else "none")
    if config.evaluate.prompts or config.validate.every:
        policy.keep_base()
    policy.set_guidance(config.policy.guidance)
    for line in attention_lines(policy.denoiser):
        screen.say(line)
    trainer = OnlineTrainer(config, policy, groups, accelerator, run)
    if source is not None:
        trainer.restore(load_checkpoint(source), str(source))
        if accelerator.is_main_process:
            run.write_config(recipe_text(config), f"until-{name_of(trainer.step)}")
    validator = Validator(config, accelerator, screen, captions)
    trackers = Trackers(config.log.trackers if accelerator.is_main_process else (), run)

    def on_step(step: int, row: dict[str, float]) -> None:
        screen.on_step(step, row)
        trackers.log(step, row)

    with screen.training(trainer.step):
        trainer.fit(on_step, Watched(validator))
    trackers.close()
    validator.keep_best(trainer)
    return finish_run(trainer, screen)


class Watched:
    """Validation whose held-out win rate the watch over reward hacking takes in."""

    def __init__(self, validator: Validator) -> None:
        """Keep the validator."""
        self.validator, self.seen = validator, 0

    def __call__(self, trainer: Core) -> None:
        """Validate if this step is due; on all processes."""
        from accelerate.utils import broadcast_object_list

        assert isinstance(trainer, OnlineTrainer)
        self.validator(trainer)
        every = trainer.config.validate.every
        if trainer.config.validate.judge is None or not every or trainer.step % every:
            return
        rows = trainer.run.validations() if trainer.accelerator.is_main_process else []
        own = [r["win_rate"] for r in rows if r["step"] == trainer.step]
        (found,) = broadcast_object_list([own[-1] if own else None])
        if found is not None:
            trainer.stopped = trainer.watch.validation(trainer.step, found)


def plan_lines(config: OnlineConfig, policy: Policy) -> list[str]:
    """What a run is going to do, one fact a line."""
    trained = sum(p.numel() for p in policy.trainable().values())
    groups, made = config.groups, config.groups.prompts * config.groups.images
    steps = f"{config.rollout.steps} steps at guidance {config.rollout.guidance:g}"
    judged = [r.scorer for r in config.rewards] or [config.judge.scorer if config.judge else ""]
    return [
        f"model       {policy.family.name}, {policy.process.prediction} prediction: {trained:,} parameters "
        "trained",
        f"iteration   {groups.prompts} prompts x {groups.images} pictures of {steps}",
        f"judged by   {', '.join(judged)}",
        f"in all      {config.steps} iterations, {config.steps * made:,} pictures",
    ]


def _preflight(config: OnlineConfig) -> None:
    """Load and let go what validation and evaluation will need, before anything takes long."""
    check_trackers(config.log.trackers)
    judge = [] if config.judge is None else [(config.judge.scorer, config.judge.looks)]
    asked = [*((r.scorer, r.looks) for r in config.rewards), *judge]
    refuse_unknown([scorer for scorer, looks in asked if looks != "latents"])
    for scorer in (scorer for scorer, looks in asked if looks == "latents"):
        latent_scorers.get(Spec.parse(scorer).name)
    if config.evaluate.prompts:
        load_judges(config.evaluate.judges, config.evaluate.trained_on)
    if config.validate.every and config.validate.judge is not None:
        load_judges([config.validate.judge], [])


def _canonical(config: OnlineConfig, policy: Policy) -> OnlineConfig:
    """Beta in the canonical convention, now that the latent's size is known."""
    if not isinstance(config.objective, OnlinePairs):
        return config
    inner = canonical(config.objective.objective, latent_elements(policy, policy.side))
    return replace(config, objective=replace(config.objective, objective=inner))
