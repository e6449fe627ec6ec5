"""From a recipe to a run: read, prepare, train, export, evaluate, show. ``diffalign.align`` in Python."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from diffalign.config import ConfigError, load
from diffalign.data.records import Record
from diffalign.evaluate.report import Report
from diffalign.policy import Policy, load_policy
from diffalign.policy.precision import DTYPES
from diffalign.train.checkpoint import CheckpointError, load_checkpoint, name_of, newest
from diffalign.train.config import TrainConfig, recipe_text
from diffalign.train.finish import evaluate_run, export_run
from diffalign.train.losers import Round, run_rounds
from diffalign.train.plan import check_optimizer, latent_elements, make_plan
from diffalign.train.preflight import preflight
from diffalign.train.prepare import build_loader, fitted, given_records, read_records
from diffalign.train.progress import Screen
from diffalign.train.rounds import finished, round_recipe, start_rounds
from diffalign.train.run import RunFolder, new_run, read_config
from diffalign.train.shard import check_distribution, fsdp_options, shard_count
from diffalign.train.terms import UNIONS, canonical
from diffalign.train.trackers import Trackers
from diffalign.train.trainer import Trainer
from diffalign.train.validate import Validator

log = logging.getLogger(__name__)

PATIENCE = timedelta(hours=24)
"""How long processes wait for one another."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run."""

    dir: Path
    report: Report | None
    policy: Policy


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
    config = load_recipe(read_config(_run_folder(resume)) if resume else recipe, overrides)
    if config.losers is not None:
        return _align_in_rounds(config, records, None if resume is None else _run_folder(resume))
    source = _checkpoint_of(Path(resume)) if resume else None
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
    run = _claim(config, resume, accelerator)
    screen.say(f"run folder  {run.root}")
    if accelerator.is_main_process:
        run.write_skipped(loader.data.report.bad, loader.data.report.equal)
    policy.set_reference(config.policy.reference if config.needs_reference else "none")
    if config.evaluate.prompts or config.validate.every:
        policy.keep_base()
    policy.set_guidance(config.policy.guidance)
    trainer = Trainer(config, policy, loader, accelerator, run)
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
    export_run(trainer, screen)
    report = evaluate_run(trainer, screen) if config.evaluate.prompts else None
    return Run(dir=run.root, report=report, policy=policy)


def _align_in_rounds(config: TrainConfig, records: Sequence[Record] | None, resume: Path | None) -> Run:
    """Train round after round, each on losers that a former one made; the last one's run is returned.

    Of several processes the main one makes the losers, and the others find them.
    """
    accelerator = make_accelerator(config)
    root, losers = _claim(config, resume, accelerator), config.losers
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
    from diffalign.policy.meta import meta_policy

    config = load_recipe(recipe, overrides)
    try:
        policy = load_policy(
            config.policy.model, config.policy.adapter, text_length=config.policy.text_length
        )
        note = []
    except FileNotFoundError:
        policy = meta_policy(config.policy.model, config.policy.adapter, config.policy.text_length)
        note = [
            f"weights     {config.policy.model} is not here; sizes are those of its published configuration"
        ]
    return note + make_plan(with_canonical_beta(config, policy), policy, processes).lines()


def cache_only(recipe: str | Path | Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Encode a recipe's images and prompts and stop; the same errors as align."""
    config = load_recipe(recipe, overrides)
    accelerator = make_accelerator(config)
    screen = Screen(accelerator.is_main_process, config.steps, config.batch, config.log.every)
    policy = make_policy(config, accelerator.device)
    records = fitted(config, read_records(config, policy, screen), screen.say)
    build_loader(config, policy, records, accelerator, screen)


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Accelerator with the recipe's precision; accumulation is the trainer's own.

    Raises:
        ConfigError: the batch cannot be shared by the processes, or they share the model in a way that the
            trainer does not know.
    """
    from accelerate.state import AcceleratorState
    from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs, set_seed

    AcceleratorState._reset_state()  # an earlier run of this Python process may have had another precision
    mixed = config.precision if config.precision in ("bf16", "fp16") else "no"
    cpu = not (
        torch.cuda.is_available() or torch.backends.mps.is_available()
    )  # else processes would not meet
    if cpu and mixed == "fp16":
        raise ConfigError(
            "precision is fp16, which needs a GPU, and there is none: use precision=bf16 or fp32"
        )
    accelerator = Accelerator(
        mixed_precision=mixed,
        cpu=cpu,
        # given here, or a variable of accelerate's launcher would divide the gradients once more
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        # encoding and validation run on one process while the others wait, for longer than NCCL's 10 minutes
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    check_distribution(accelerator.distributed_type, config, fsdp_options())
    if config.batch % (config.accumulate * accelerator.num_processes):
        raise ConfigError(
            f"batch is {config.batch}; {accelerator.num_processes} processes x accumulate "
            f"{config.accumulate} must divide it"
        )
    torch.set_num_threads(cpu_threads(config.threads, accelerator.num_processes))
    set_seed(config.seed)
    return accelerator


def cpu_threads(asked: int, processes: int) -> int:
    """CPU threads of this process: as asked, as set up, or (under accelerate launch) its share of the cores.

    accelerate launch sets one thread where the user says nothing, which leaves a laptop's other cores idle.
    """
    if asked:
        return asked
    if os.environ.get("OMP_NUM_THREADS") == "1" and "ACCELERATE_MIXED_PRECISION" in os.environ:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
        return max(1, (os.cpu_count() or 1) // here)
    return torch.get_num_threads()


def make_policy(config: TrainConfig, device: torch.device) -> Policy:
    """Load the policy onto the device, in the recipe's precision (trained weights stay in fp32 at least)."""
    policy = load_policy(
        config.policy.model,
        config.policy.adapter,
        text_length=config.policy.text_length,
        allow_download=config.policy.allow_download,
    )
    policy.set_long_prompts(config.policy.long_prompts)
    policy.to(device, DTYPES[config.precision])
    if config.policy.gradient_checkpointing:
        policy.denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
    return policy


def with_canonical_beta(config: TrainConfig, policy: Policy) -> TrainConfig:
    """Replace a beta in a paper's convention by the canonical one, now that the latent's size is known."""
    elements = latent_elements(policy, config.data.resolution)
    terms = tuple(replace(t, objective=canonical(t.objective, elements)) for t in config.terms)
    return replace(config, objective=canonical(config.objective, elements), terms=terms)


def _claim(config: TrainConfig, resume: str | Path | None, accelerator: Accelerator) -> RunFolder:
    """The run's folder, agreed on by all processes; the main one writes the resolved recipe into it."""
    from accelerate.utils import broadcast_object_list

    root = [""]
    if accelerator.is_main_process:
        run = RunFolder(root=_run_folder(resume)) if resume else new_run(config.output)
        root = [str(run.root)]
        if not resume:
            run.write_config(recipe_text(config))
    return RunFolder(root=Path(broadcast_object_list(root)[0]))


def _run_folder(resume: str | Path) -> Path:
    path = Path(resume)
    return path.parent.parent if path.parent.name == "checkpoints" else path


def _checkpoint_of(path: Path) -> Path:
    if path.parent.name == "checkpoints":
        return path
    found = newest(path / "checkpoints")
    if found is None:
        raise CheckpointError(
            f"{path / 'checkpoints'} holds no whole checkpoint to resume from: start the run anew"
        )
    return found
