"""From a recipe to a run: read, prepare, train, export, evaluate, show. ``diffalign.align`` in Python."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffalign.attention.install import attention_lines
from diffalign.config import ConfigError, load, read_block
from diffalign.data.records import Record
from diffalign.policy import Policy, load_policy
from diffalign.train.blocks import RunConfig
from diffalign.train.checkpoint import CheckpointError, load_checkpoint, name_of
from diffalign.train.config import TrainConfig, recipe_text
from diffalign.train.directions import make_conditioner
from diffalign.train.finish import Run, finish_run
from diffalign.train.losers import Round, run_rounds
from diffalign.train.plan import check_optimizer, latent_elements, make_plan
from diffalign.train.preflight import preflight
from diffalign.train.prepare import build_loader, fitted, given_records, read_records
from diffalign.train.progress import Screen
from diffalign.train.robust import make_group_weights
from diffalign.train.rounds import finished, round_recipe, start_rounds
from diffalign.train.run import read_config
from diffalign.train.setup import checkpoint_of, claim, make_accelerator, make_policy, run_folder
from diffalign.train.shard import shard_count
from diffalign.train.terms import UNIONS, canonical
from diffalign.train.trackers import Trackers
from diffalign.train.trainer import Trainer
from diffalign.train.validate import Validator

log = logging.getLogger(__name__)


def load_recipe(recipe: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> TrainConfig:
    """Read and check a recipe.

    Raises:
        ConfigError: a misspelt key, a wrong value, or parts that do not fit; nothing has been loaded yet.
    """
    from diffalign.assets import asset

    source = recipe if isinstance(recipe, Mapping) else asset(str(recipe))
    config = load(TrainConfig, source, overrides, unions=UNIONS)
    check_optimizer(config.optim)
    return config


def is_online(recipe: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> bool:
    """Whether a recipe is of a run that makes its own pictures: it has a ``rollout`` block.

    Raises:
        ConfigError: no such file, or broken YAML.
    """
    from diffalign.assets import asset

    given = recipe if isinstance(recipe, Mapping) else read_block(asset(str(recipe)))
    return "rollout" in given or any(o.startswith("rollout.") for o in overrides)


def load_any(recipe: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> RunConfig:
    """Read and check a recipe of either kind: a TrainConfig, or an OnlineConfig.

    Raises:
        ConfigError: as ``load_recipe``.
    """
    from diffalign.online.run import load_online

    return (load_online if is_online(recipe, overrides) else load_recipe)(recipe, overrides)


def align(
    recipe: str | Path | Mapping[str, Any],
    *overrides: str,
    records: Sequence[Record] | None = None,
    resume: str | Path | None = None,
) -> Run:
    """Train a policy on preferences and evaluate it.

    Args:
        recipe: YAML file (or its content) of a TrainConfig; packaged recipes are found by name.
        overrides: ``key.sub=value`` strings.
        records: preferences in memory, instead of those that the recipe names.
        resume: run folder, or one of its checkpoints, to go on from.

    Raises:
        ConfigError: the recipe is wrong.
        DataError: the preferences cannot be read or do not fit the objective.
        CheckpointError: there is nothing to resume from, or it does not fit.
        DivergedError: training blew up.
    """
    from diffalign.online.run import OnlineConfig, align_online

    config = load_any(read_config(run_folder(resume)) if resume else recipe, overrides)
    if isinstance(config, OnlineConfig):
        if records is not None:
            raise ConfigError("an online run makes its own pictures: leave records out, or the rollout block")
        return align_online(config, resume)
    assert isinstance(config, TrainConfig)
    if config.losers is not None:
        return _align_in_rounds(config, records, None if resume is None else run_folder(resume))
    source = checkpoint_of(Path(resume)) if resume else None
    accelerator = make_accelerator(config)
    screen = Screen(accelerator.is_main_process, config.steps, config.batch, config.log.every)
    with accelerator.main_process_first():
        given = given_records(config, records, screen.say)
        if accelerator.is_main_process:
            preflight(config, given)
    policy = make_policy(config, accelerator.device)
    config = with_canonical_beta(config, policy)
    plan = make_plan(config, policy, accelerator.num_processes, shard_count(accelerator))
    for line in plan.lines():
        screen.say(line)
    with accelerator.main_process_first():
        if given is None:
            given = fitted(config, read_records(config, policy, screen), screen.say)
        loader = build_loader(config, policy, given, accelerator, screen)
    run = claim(config, resume, accelerator)
    screen.say(f"run folder  {run.root}")
    if accelerator.is_main_process:
        run.write_skipped(loader.data.report.bad, loader.data.report.equal)
    people = make_conditioner(config, policy, given)
    policy.set_reference(config.policy.reference if config.needs_reference else "none")
    if config.evaluate.prompts or config.validate.every:
        policy.keep_base()
    policy.set_guidance(config.policy.guidance)
    for line in attention_lines(policy.denoiser):
        screen.say(line)
    robust = None if config.people is None else config.people.robust
    groups = make_group_weights(robust, given, accelerator.device)
    trainer = Trainer(config, policy, loader, accelerator, run, people, groups)
    if source is not None:
        trainer.restore(load_checkpoint(source), str(source))
        if accelerator.is_main_process:
            run.write_config(recipe_text(config), f"until-{name_of(trainer.step)}")
    validator = Validator(config, accelerator, screen, loader.data.captions)
    trackers = Trackers(config.log.trackers if accelerator.is_main_process else (), run)

    def on_step(step: int, row: dict[str, float]) -> None:
        screen.on_step(step, row)
        trackers.log(step, row)

    with screen.training(trainer.step):
        trainer.fit(on_step, validator)
    trackers.close()
    validator.keep_best(trainer)
    return finish_run(trainer, screen)


def _align_in_rounds(config: TrainConfig, records: Sequence[Record] | None, resume: Path | None) -> Run:
    """Train round after round, each on losers that a former one made; the last one's run is returned.

    Of several processes the main one makes the losers, and the others find them.
    """
    accelerator = make_accelerator(config)
    root, losers = claim(config, resume, accelerator), config.losers
    assert losers is not None
    with accelerator.main_process_first():
        winners, open_maker = start_rounds(config, records, accelerator.device)
    runs: list[Run] = []

    def train(one: Round, pairs: list[Record]) -> str:
        folder, last = root.root / f"round-{one.number}", one.number == losers.iterations
        done = finished(folder, last)
        accelerator.wait_for_everyone()  # all have looked before one of them writes
        if not done:
            if accelerator.is_main_process:
                shutil.rmtree(folder, ignore_errors=True)  # cut short; its losers are kept
            accelerator.wait_for_everyone()
            runs.append(align(round_recipe(config, folder, one, last), records=pairs))
            accelerator.wait_for_everyone()
        return str(folder / "export")

    run_rounds(
        losers, winners, open_maker, train, Path(config.data.cache), turn=accelerator.main_process_first
    )
    if not runs:
        raise CheckpointError(f"all rounds of {root.root} have ended: there is nothing to resume")
    return runs[-1]


def plan_only(
    recipe: str | Path | Mapping[str, Any], overrides: Sequence[str], processes: int = 1
) -> list[str]:
    """Lines of the plan of a recipe, without data and (for models that are not here) without weights."""

    from diffalign.online.run import OnlineConfig, plan_lines

    config = load_any(recipe, overrides)
    policy, note = _weightless(config)
    if isinstance(config, OnlineConfig):
        return note + plan_lines(config, policy)
    assert isinstance(config, TrainConfig)
    return note + make_plan(with_canonical_beta(config, policy), policy, processes).lines()


def _weightless(config: RunConfig) -> tuple[Policy, list[str]]:
    """The policy, without weights where they are not here, and a line that says so."""
    from diffalign.policy.meta import meta_policy

    try:
        policy = load_policy(
            config.policy.model, config.policy.adapter, text_length=config.policy.text_length
        )
        return policy, []
    except FileNotFoundError:
        policy = meta_policy(config.policy.model, config.policy.adapter, config.policy.text_length)
        note = [
            f"weights     {config.policy.model} is not here; sizes are those of its published configuration"
        ]
    return policy, note


def cache_only(recipe: str | Path | Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Encode a recipe's images and prompts and stop; the same errors as align."""
    config = load_recipe(recipe, overrides)
    accelerator = make_accelerator(config)
    screen = Screen(accelerator.is_main_process, config.steps, config.batch, config.log.every)
    policy = make_policy(config, accelerator.device)
    records = fitted(config, read_records(config, policy, screen), screen.say)
    build_loader(config, policy, records, accelerator, screen)


def with_canonical_beta(config: TrainConfig, policy: Policy) -> TrainConfig:
    """Replace a beta in a paper's convention by the canonical one, now that the latent's size is known."""
    elements = latent_elements(policy, config.data.resolution)
    terms = tuple(replace(t, objective=canonical(t.objective, elements)) for t in config.terms)
    return replace(config, objective=canonical(config.objective, elements), terms=terms)
