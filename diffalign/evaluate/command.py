"""``diffalign evaluate``: what the command line asks for, and what is written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffalign.evaluate.asked import Asked
from diffalign.evaluate.models import People

Models = Annotated[
    list[str] | None,
    typer.Argument(help="base, then aligned models: diffusers, run or LoRA folders; PATH or NAME=PATH"),
]
Many = Annotated[list[str] | None, typer.Option(help="NAME or NAME=WEIGHTS; several, or joined by commas")]

ForUser = Annotated[
    list[str] | None,
    typer.Option(help="a column for somebody by the last model: NAME, or NAME:WEIGHT,NAME:WEIGHT; several"),
]
ForDirection = Annotated[
    list[str] | None, typer.Option(help="a column for a mixture of rewards: hps=0.8,aesthetic=0.6; several")
]


def evaluate(
    models: Models = None,
    prompts: Annotated[
        str, typer.Option(help="file of prompts; of a run alone a number, as in its recipe where not given")
    ] = "",
    scorers: Many = None,
    trained_on: Many = None,
    seeds: Annotated[
        int, typer.Option(min=0, help="pictures of each prompt; 0 = 4, or as in the recipe")
    ] = 0,
    output: Annotated[Path, typer.Option(help="folder; goes on with what is there")] = Path(
        "outputs/evaluation"
    ),
    primary: Annotated[str, typer.Option(help="scorer that decides; else the first of --scorers")] = "",
    part: Annotated[
        str, typer.Option(help="prompts by hash: report (70 %), select (30 %, to choose models on) or all")
    ] = "report",
    limit: Annotated[int, typer.Option(min=0, help="the first so many prompts; 0 takes all")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="sampling steps")] = 20,
    guidance: Annotated[float, typer.Option(help="classifier-free guidance")] = 4.0,
    side: Annotated[int, typer.Option(min=0, help="side in pixels; 0 = the models' own")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="pictures at once")] = 32,
    noise: Annotated[
        str, typer.Option(help="own: each prompt has its own; shared: seed 3 is one noise for all prompts")
    ] = "own",
    precision: Annotated[str, typer.Option(help="of the denoiser: fp32, bf16 or fp16")] = "fp32",
    text_length: Annotated[int, typer.Option(min=1, help="T5 tokens; 256 for the released SD3")] = 32,
    processes: Annotated[int, typer.Option(min=1, help="share the work among so many")] = 1,
    diversity: Many = None,
    control: Annotated[
        list[str] | None,
        typer.Option(help="also the win rate at equal saturation, sharpness, ... (or other scorers' scores)"),
    ] = None,
    votes: Annotated[
        list[Path] | None, typer.Option(help=".jsonl of people's votes on these pictures; calibrates scorers")
    ] = None,
    shift: Annotated[
        list[str] | None, typer.Option(help="score under changed initial noise: scale=1.1, mean=0.1")
    ] = None,
    smoothness: Annotated[
        int, typer.Option(min=0, help="pictures on a path between two noises, for ISTD; 0 = none")
    ] = 0,
    used: Annotated[list[Path] | None, typer.Option(help="file of prompts that were trained on")] = None,
    allow_contaminated: Annotated[
        bool, typer.Option("--allow-contaminated", help="report on training prompts all the same")
    ] = False,
    tie_margin: Annotated[float, typer.Option(min=0, help="gains within so many s.d. are ties")] = 0.25,
    user: ForUser = None,
    direction: ForDirection = None,
    users: Annotated[str, typer.Option(help="folder of the user adapter; else that of the last model")] = "",
    user_scale: Annotated[float | None, typer.Option(help="strength of the attention to people")] = None,
    user_guidance: Annotated[float | None, typer.Option(help="guidance of its own for people")] = None,
    plan: Annotated[
        float | None, typer.Option(help="print how many prompts a win rate such as 0.55 needs, and stop")
    ] = None,
    correlation: Annotated[
        float, typer.Option(min=0, max=1, help="with --plan: between the seeds of a prompt")
    ] = 0.3,
) -> None:
    """Compare models with their base: pictures of the same prompts and seeds, scored, with intervals.

    Example: diffalign evaluate samples/shapes/unet outputs/shapes-unet-dpo --prompts prompts.txt
    --scorers shapes-large,shapes-obedience --output outputs/compared, or a run against its own base once
    more: diffalign evaluate outputs/shapes-unet-dpo --seeds 8, or people side by side: diffalign evaluate
    outputs/run --prompts prompts.txt --scorers shapes-large --user anna --user ben, or --plan 0.55
    """
    from diffalign.cli import one_clear_line, set_up_logging
    from diffalign.evaluate.planning import plan_lines

    with one_clear_line():
        if plan is not None:
            typer.echo("\n".join(plan_lines(plan, correlation)))
            return
        set_up_logging()
        asked = Asked(
            models=tuple(models or ()), prompts=prompts, scorers=_listed(scorers), primary=primary,
            trained_on=_listed(trained_on), sets=_listed(diversity), seeds=seeds, output=output, part=part,
            limit=limit, steps=steps, guidance=guidance, side=side, batch=batch, noise=noise,
            control=_listed(control), votes=tuple(votes or ()), shift=_listed(shift), smoothness=smoothness,
            precision=precision, text_length=text_length, processes=processes, used=tuple(used or ()),
            allow_contaminated=allow_contaminated, tie_margin=tie_margin,
            people=_people(user, direction, users, user_scale, user_guidance),
        )  # fmt: skip
        _run(asked)


def _run(asked: Asked) -> None:
    from diffalign.evaluate.run import evaluate_models, lone_run

    run = lone_run(asked)
    if run is None:
        evaluate_models(asked)
        return
    from diffalign.train.again import evaluate_again

    evaluate_again(run, int(asked.prompts or 0), asked.seeds)


def _people(
    user: list[str] | None, direction: list[str] | None, users: str, scale: float | None, own: float | None
) -> People:
    return People(
        user=tuple(user or ()), direction=tuple(direction or ()), users=users, user_scale=scale,
        user_guidance=own,
    )  # fmt: skip


def _listed(values: list[str] | None) -> tuple[str, ...]:
    """Options given several times, or joined by commas."""
    return tuple(part for value in values or [] for part in value.split(",") if part)
