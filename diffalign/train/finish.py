"""The end of a run: weights for users, evaluation on held-out prompts, report, gallery, model card."""

from __future__ import annotations

import logging
from collections.abc import Callable, Set
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import Tensor

from diffalign.assets import asset
from diffalign.attention.install import chosen_lines
from diffalign.data.split import normalise
from diffalign.evaluate.generate import Sampling, generate, generate_base
from diffalign.evaluate.judge import Evaluation, evaluate_pictures, load_judges
from diffalign.evaluate.prompts import Part, part_of, read_prompts
from diffalign.evaluate.report import Report, markdown_table, show_report, write_report
from diffalign.policy import Policy
from diffalign.policy.export import export_policy, model_card
from diffalign.policy.guidance import SELF, write_guidance
from diffalign.train.blocks import RunConfig, WorldConfig
from diffalign.train.core import Core
from diffalign.train.progress import Screen
from diffalign.train.shown import in_training

logger = logging.getLogger(__name__)

USAGE = {
    True: 'pipeline = DiffusionPipeline.from_pretrained("{model}")\npipeline.load_lora_weights("{export}")',
    False: '{part} = {cls}.from_pretrained("{export}/{part}")\n'
    'pipeline = DiffusionPipeline.from_pretrained("{model}", {part}={part})',
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run."""

    dir: Path
    report: Report | None
    policy: Policy


def finish_run(trainer: Core, screen: Screen) -> Run:
    """Export the weights and, where prompts are asked for, evaluate them."""
    for line in chosen_lines(trainer.policy.denoiser):
        screen.say(line)
    export_run(trainer, screen)
    report = evaluate_run(trainer, screen) if trainer.config.evaluate.prompts else None
    return Run(dir=trainer.run.root, report=report, policy=trainer.policy)


def evaluation_prompts(config: RunConfig, part: Part, captions: Set[str] = frozenset()) -> list[str]:
    """Prompts that choose checkpoints ("select") and prompts that are reported ("report"); they never meet.

    Those that select leave out the training captions, which are given as ``split.normalise`` makes them.

    A prompt file is split by hash, 30 to 70. In the shapes world the held-out prompts are all reported, and
    those that select are training prompts that are not voted on.
    """
    found = _part(config, part)
    return [p for p in found if normalise(p) not in captions] if part == "select" else found


def warn_of_overlap(config: RunConfig, captions: Set[str]) -> None:
    """Warn where prompts of the report are training captions too, and so are not held out."""
    prompts = evaluation_prompts(config, config.evaluate.part)[: config.evaluate.prompts]
    both = [p for p in prompts if normalise(p) in captions]
    if both:
        logger.warning(
            "%d of the %d prompts that will be reported are training captions too (%r for one), so they are "
            "not held out: take them out of the data or of evaluate.prompt_file",
            len(both), len(prompts), both[0],
        )  # fmt: skip


def _part(config: RunConfig, part: Part) -> list[str]:
    if config.evaluate.prompt_file is not None:
        every = [p.prompt for p in read_prompts(asset(config.evaluate.prompt_file))]
        return [p for p in every if part_of(p) == part]
    from diffalign.world.votes import training_prompts, world_prompts

    world = config.data.world or WorldConfig()
    if part == "report":
        return [str(p) for p in world_prompts(world.taste, 1000, "heldout")]
    return [str(p) for p in training_prompts(world)[1]]


def export_run(trainer: Core, screen: Screen) -> None:
    """Write the trained weights (the average where there is one) to export/, on the main process."""
    with trainer.exported_weights():
        if trainer.accelerator.is_main_process:
            export_policy(trainer.policy, trainer.run.export, card=_card(trainer, "Not evaluated yet."))
            _export_guidance(trainer)
            further = trainer.export_further()
            if further is not None:
                screen.say(f"people      {further}")
    screen.say(f"weights     {trainer.run.export}")


def _export_guidance(trainer: Core) -> None:
    """Beside the LoRA, write how it guides: a folder for ``diffalign generate --lora`` and ``attach``."""
    options, adapter = trainer.config.policy.guidance, trainer.config.policy.adapter
    if options is None or adapter is None:
        return
    own = str(trainer.run.export)
    trained = () if options.negative == SELF else (own,)
    named = replace(
        options,
        negative=own if options.negative == SELF else options.negative,
        positive=(*adapter.frozen, *trained, *options.positive),
    )
    write_guidance(trainer.run.root / "guidance", named)


def evaluate_run(trainer: Core, screen: Screen) -> Report | None:
    """Evaluate against the base on held-out prompts; writes report.json, gallery.html and the model card.

    Returns None on all but the main process.
    """
    with trainer.exported_weights():
        return _evaluated(trainer, screen) if trainer.accelerator.is_main_process else None


def _evaluated(trainer: Core, screen: Screen) -> Report:
    evaluation = paired_evaluation(trainer.config, trainer.policy, screen)
    shown = in_training(
        trainer.policy, trainer.shown(), further_pictures(trainer.config, trainer.policy, evaluation)
    )
    evaluation = evaluation.beside(shown)
    report = evaluation.report()
    write_report(trainer.run.root / "report.json", report)
    evaluation.write_gallery(trainer.run.root / "gallery.html", report, trainer.run.root.name)
    (trainer.run.export / "README.md").write_text(_card(trainer, markdown_table(report)))
    if screen.shown:
        show_report(report, screen.wide())
    screen.say(
        f"report      {trainer.run.root / 'report.json'}\ngallery     {trainer.run.root / 'gallery.html'}"
    )
    return report


def paired_evaluation(config: RunConfig, policy: Policy, screen: Screen) -> Evaluation:
    """Pictures of base and policy on the prompts of ``evaluate.part``, scored by all judges."""
    options = config.evaluate
    prompts = evaluation_prompts(config, options.part)[: options.prompts]
    if len(prompts) < options.prompts:
        logger.warning(
            "there are %d prompts to evaluate on, not the %d asked for: all of them are taken; "
            "more seeds narrow the intervals too", len(prompts), options.prompts,
        )  # fmt: skip
    judges = load_judges(options.judges, options.trained_on, policy.device)
    sampling = Sampling(steps=options.steps, guidance=options.guidance, side=options.side)
    seeds = list(range(options.seeds))
    with screen.task("evaluating", 2 * len(prompts) * len(seeds)) as advance:
        base = generate_base(policy, prompts, seeds, sampling, Path(config.data.cache), advance)
        model = generate(policy, prompts, seeds, sampling, advance)
    return evaluate_pictures(prompts, base, model, judges, "base", "aligned")


def further_pictures(config: RunConfig, policy: Policy, evaluation: Evaluation) -> Callable[[], Tensor]:
    """Makes pictures like those of an evaluation's model once more, for somebody."""
    options = config.evaluate
    sampling = Sampling(steps=options.steps, guidance=options.guidance, side=options.side)
    return partial(generate, policy, evaluation.prompts, list(range(options.seeds)), sampling)


def _card(trainer: Core, table: str) -> str:
    config, policy = trainer.config, trainer.policy
    usage = USAGE[policy.adapter is not None].format(
        model=config.policy.model,
        export=trainer.run.export,
        part=policy.family.component,
        cls=type(policy.denoiser).__name__,
    )
    return model_card(trainer.run.root.name, config.policy.model, config.settings(), table, usage)
