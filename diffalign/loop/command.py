"""``diffalign loop``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def loop(
    rounds: Annotated[int, typer.Option(min=1, help="rounds; more than before goes on")] = 3,
    pipeline: Annotated[str, typer.Option(help="diffusers folder")] = "samples/shapes/unet",
    recipe: Annotated[str, typer.Option(help="recipe whose settings are taken; shapes have their own")] = "",
    taste: Annotated[
        str, typer.Option(help="what the simulated rater likes: large, left, dark, ...")
    ] = "large",
    rater: Annotated[str, typer.Option(help="simulated, or human: stops until you have voted")] = "simulated",
    votes: Annotated[int, typer.Option(help="pairs that are voted on in a round")] = 100,
    candidates: Annotated[int, typer.Option(help="pairs they are chosen from; 0 = as many, or twice")] = 0,
    choose: Annotated[
        str, typer.Option(help="random, margin (implicit), disagreement, entropy or routed")
    ] = "random",
    scorer: Annotated[list[str] | None, typer.Option(help="name or name=weights, to choose by")] = None,
    objective: Annotated[str, typer.Option(help="dpo (pairs) or kto (likes and dislikes)")] = "dpo",
    steps: Annotated[int, typer.Option(help="training steps of a round")] = 20,
    learning_rate: Annotated[float, typer.Option(help="peak; 0 = half of the recipe's")] = 0.0,
    prompts: Annotated[str, typer.Option(help="file of training prompts; else the shapes world's")] = "",
    judge: Annotated[str, typer.Option(help="held-out scorer; else the simulated rater's own taste")] = "",
    evaluate_prompts: Annotated[int, typer.Option(help="held-out prompts after each round; 0 = none")] = 60,
    evaluate_file: Annotated[
        str, typer.Option(help="file of held-out prompts; else the shapes world's")
    ] = "",
    seeds: Annotated[int, typer.Option(help="pictures of each held-out prompt")] = 2,
    seed: Annotated[int, typer.Option(help="seed of everything")] = 0,
    output: Annotated[Path, typer.Option(help="folder; the same again goes on")] = Path("outputs/loop"),
) -> None:
    """Generate, vote, train on the votes, evaluate, and again: a better model round by round.

    Example: diffalign loop --rounds 3, or with your own eyes: diffalign loop --rater human
    """
    from rich.console import Console

    from diffalign.cli import one_clear_line, set_up_logging
    from diffalign.loop.options import LoopOptions
    from diffalign.loop.picture import show_rounds
    from diffalign.loop.run import run_loop

    set_up_logging()
    with one_clear_line():
        options = LoopOptions(
            pipeline=pipeline, recipe=recipe, taste=taste, rater=rater, votes=votes, candidates=candidates,
            choose=choose, scorers=tuple(scorer or ()), objective=objective, steps=steps,
            learning_rate=learning_rate, prompts=prompts, judge=judge,
            evaluate_prompts=evaluate_prompts, evaluate_file=evaluate_file, seeds=seeds,
            seed=seed,
        )  # fmt: skip
        found = run_loop(options, rounds, output, typer.echo)
        show_rounds(found.rounds, Console())
        typer.echo(found.waiting or f"rounds      {found.folder / 'rounds.json'}")
