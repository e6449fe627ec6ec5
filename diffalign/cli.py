"""The command line: thin; every command only parses and calls."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler

from diffalign import cli_attention
from diffalign.cli_scorers import register
from diffalign.evaluate.command import evaluate
from diffalign.gallery.command import gallery_app
from diffalign.loop.command import loop
from diffalign.personalize.command import users_app
from diffalign.votes.command import gallery_serve, votes_app

app = typer.Typer(
    help="Align diffusion models with what people prefer.", no_args_is_help=True, rich_markup_mode="rich",
    pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip
recipes_app = typer.Typer(help="List recipes, or copy one to start from.", no_args_is_help=True)
scorers_app = typer.Typer(help="Reward models.", no_args_is_help=True)
bench_app = typer.Typer(help="Measure speed on this machine.", no_args_is_help=True)
app.add_typer(recipes_app, name="recipes")
app.add_typer(scorers_app, name="scorers")
app.add_typer(bench_app, name="bench")
app.add_typer(gallery_app, name="gallery")
gallery_app.command("serve")(gallery_serve)
app.add_typer(votes_app, name="votes")
app.add_typer(users_app, name="users")
app.command()(loop)
register(scorers_app, bench_app)
cli_attention.register(bench_app)
app.command()(evaluate)

Recipe = Annotated[
    str, typer.Argument(help="recipe file, run folder's config.yaml, or name of a packaged recipe")
]
Overrides = Annotated[list[str] | None, typer.Argument(help="key.sub=value ...")]
Resume = Annotated[Path | None, typer.Option(help="run folder or checkpoint to go on from")]


@contextmanager
def one_clear_line() -> Iterator[None]:
    """Turn expected errors into one line on stderr and exit code 2; anything else is a bug and keeps its
    traceback.
    """
    from diffalign.train.checkpoint import CheckpointError
    from diffalign.train.monitor import DivergedError
    from scorers.registry import RegistryError

    try:
        yield
    except (ValueError, OSError, RegistryError, CheckpointError, DivergedError, ModuleNotFoundError) as error:
        if "DIFFALIGN_TRACEBACK" in os.environ:
            raise
        Console(stderr=True).print(f"[red]error:[/red] {type(error).__name__}: ", end="")
        print(" ".join(str(error).split()), file=sys.stderr)
        raise typer.Exit(2) from error


def set_up_logging() -> None:
    """Warnings on stderr, in rich's form, and no bars of diffusers and transformers while they load."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    logging.basicConfig(
        level=logging.WARNING, format="%(message)s", handlers=[RichHandler(show_time=False, show_path=False)]
    )
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    # diffusers 0.42 warns of modules to keep in float32 even where it lists none
    models = logging.getLogger("diffusers.models.modeling_utils")
    models.addFilter(lambda record: "float32: []" not in record.getMessage())


@app.command()
def demo(
    output: Annotated[str, typer.Option(help="folder for report and gallery")] = "outputs/demo",
    taste: Annotated[
        str, typer.Option(help="what the simulated voter likes: large, left, dark, ...")
    ] = "large",
) -> None:
    """From preferences to a better model in a few minutes.

    Example: diffalign demo --taste high
    """
    from diffalign.demo import demo as run

    set_up_logging()
    with one_clear_line():
        run(output, taste)


@app.command()
def train(
    recipe: Recipe = "",
    overrides: Overrides = None,
    processes: Annotated[
        int, typer.Option(min=1, help="start so many processes through accelerate's launcher")
    ] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print passes, parameters and memory, and stop")
    ] = False,
    resume: Resume = None,
) -> None:
    """Train on preferences and evaluate.

    Example: diffalign train shapes-unet-dpo optim.learning_rate=3e-4, and to go on: --resume outputs/RUN
    """
    set_up_logging()
    with one_clear_line():
        path, changes = recipe_and_overrides(recipe, overrides or [], resume)
        if dry_run:
            from diffalign.train.align import plan_only

            if resume is not None:
                raise ValueError(f"--dry-run plans a recipe: give {resume}/config.yaml instead of --resume")
            typer.echo("\n".join(plan_only(path, changes, processes)))
            return
        if processes > 1:
            launch(processes, [path, *changes, *(["--resume", str(resume)] if resume else [])])
            return
        from diffalign.train.align import align

        align(path, *changes, resume=resume)


def recipe_and_overrides(recipe: str, overrides: list[str], resume: Path | None) -> tuple[str, list[str]]:
    """Tell the recipe's path from overrides; with ``resume`` there is no recipe, as the run has its own.

    Raises:
        ValueError: no recipe, or one beside ``resume``.
        FileNotFoundError: no such recipe.
    """
    given = [recipe] if "=" in recipe and not Path(recipe).exists() else []
    if resume is None and (given or not recipe):
        raise ValueError("name a recipe (diffalign recipes list), or --resume a run folder")
    if resume is None:
        return recipe_path(recipe), overrides
    if recipe and not given:
        raise ValueError(
            f"--resume goes on with the recipe of {resume}: leave out {recipe!r}; options change by key=value"
        )
    return "", given + overrides


def launch(processes: int, arguments: list[str]) -> None:
    """Run ``-m diffalign.train`` in several processes.

    Raises:
        ChildProcessError: a process failed; its own message is above.
    """
    import torch

    environment = dict(os.environ)
    if not torch.cuda.is_available():
        environment["ACCELERATE_USE_CPU"] = (
            "true"  # accelerate's own --cpu starts several processes through MPI only
        )
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        str(processes),
    ]
    command += ["--main_process_port", "0", "-m", "diffalign.train", *[a for a in arguments if a]]
    done = subprocess.run(command, env=environment, check=False)
    if done.returncode:
        raise ChildProcessError(
            f"a training process ended with exit code {done.returncode}; its message is above"
        )


def recipe_path(recipe: str) -> str:
    """Path of a recipe that may be given by its bare name.

    Raises:
        FileNotFoundError: no such recipe; the message lists those that are packaged.
    """
    from diffalign import assets

    return str(assets.recipe(recipe))


def train_main() -> None:
    """Entry of ``python -m diffalign.train`` and training/align.py."""
    single = typer.Typer(pretty_exceptions_enable=False)
    single.command()(train)
    single()


@app.command()
def generate(
    model: Annotated[str, typer.Argument(help="diffusers folder, run folder or its export")],
    prompt: Annotated[list[str], typer.Option(help="prompt; may be given several times")],
    lora: Annotated[str | None, typer.Option(help="LoRA folder to load")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="pictures of each prompt")] = 4,
    seeds_from: Annotated[
        Path | None, typer.Option(help="report.json: the seeds that excel in it, the best first")
    ] = None,
    output: Annotated[Path, typer.Option(help="folder for the pictures")] = Path("outputs/pictures"),
    steps: Annotated[int, typer.Option(min=1, help="sampling steps")] = 20,
    guidance: Annotated[float, typer.Option(help="classifier-free guidance")] = 4.0,
    user: Annotated[str, typer.Option(help="for whom: NAME, or a mixture NAME:WEIGHT,NAME:WEIGHT")] = "",
    direction: Annotated[str, typer.Option(help="mixture of rewards: hps=0.8,aesthetic=0.6")] = "",
    users: Annotated[
        Path | None, typer.Option(help="folder of the user adapter; else that of the run or export")
    ] = None,
    user_scale: Annotated[
        float | None, typer.Option(help="strength of the attention to the person; 1 if not given")
    ] = None,
    user_guidance: Annotated[
        float | None, typer.Option(help="guidance of its own for the person, one more evaluation")
    ] = None,
) -> None:
    """Make pictures, for everybody or for somebody.

    Example: diffalign generate samples/shapes/unet --prompt "a red circle", or
    diffalign generate outputs/run --prompt "a red circle" --user anna:0.7,ben:0.3, or
    diffalign generate MODEL --users outputs/run/export/users --prompt "a red circle" --user anna
    """
    from diffalign.personalize.wanted import Wanted
    from diffalign.train.again import generate_to

    with one_clear_line():
        wanted = Wanted(user=user, direction=direction, scale=user_scale, guidance=user_guidance)
        made = generate_to(output, model, prompt, lora, seeds, steps, guidance, seeds_from, wanted, users)
        for path in made:
            typer.echo(path)


@app.command()
def score(
    images: Annotated[
        list[str],
        typer.Argument(
            help="picture files; with --output also folders, .parquet and .tar; with --write data, key=value"
        ),
    ],
    prompt: Annotated[str | None, typer.Option(help="what they should show; not with --write")] = None,
    scorer: Annotated[
        list[str] | None,
        typer.Option(
            help="name=weights?option=value, see: diffalign scorers list; pickscore where none is named"
        ),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="weights of one; else $SCORERS_WEIGHTS/<scorer>")
    ] = None,
    write: Annotated[bool, typer.Option("--write", help="store labels beside the data")] = False,
    pairs: Annotated[str | None, typer.Option(help="with --write: make pairs by this rule")] = None,
    output: Annotated[
        Path | None, typer.Option(help="new .jsonl or .parquet of scores; with --write file or folder")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="win rate of the second folder over the first")
    ] = False,
    axioms: Annotated[
        bool, typer.Option("--axioms", help="examine scorers: original over blurred, noised, ...")
    ] = False,
    processes: Annotated[int, typer.Option(min=1, help="with --output: share the work")] = 1,
    batch: Annotated[
        int | None, typer.Option(min=1, help="pictures that go through a scorer at once; 32 if not given")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="with --output, --compare: threads that read ahead; 4")
    ] = None,
    allow_hub: Annotated[
        bool, typer.Option("--allow-hub", help="download weights that are not here from Hugging Face")
    ] = False,
) -> None:
    """Score pictures; many into a file; two folders against each other; with --write a data set.

    Example: diffalign score a.png b.png --prompt "a red circle" --scorer shapes-large, or
    diffalign score pictures/ more.parquet --scorer shapes-large --output scores.jsonl, or
    diffalign score --compare outputs/base outputs/aligned --scorer shapes-large, or
    diffalign score samples/preferences/folder --axioms --scorer shapes-obedience cases=100, or
    diffalign score samples/preferences/folder --write --scorer shapes-large --output labels.jsonl, or
    diffalign score outputs/base outputs/other --write --pairs best_worst --output outputs/pairs
    """
    from diffalign.label.request import ScoreRequest

    with one_clear_line():
        request = ScoreRequest(
            images=images, scorers=scorer or ["pickscore"], prompt=prompt, weights=weights, write=write,
            compare=compare, axioms=axioms, pairs=pairs, output=output, processes=processes, batch=batch,
            workers=workers, allow_hub=allow_hub,
        )  # fmt: skip
        if write or axioms:
            set_up_logging()
        typer.echo("\n".join(request.lines()))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="run folder")],
    output: Annotated[Path, typer.Option(help="new folder")],
    merge: Annotated[bool, typer.Option("--merge", help="fold the LoRA into a whole pipeline")] = False,
    kohya: Annotated[bool, typer.Option("--kohya", help="write kohya's format besides")] = False,
) -> None:
    """Export a run's weights once more: merged, or for other tools.

    Example: diffalign export outputs/shapes-unet-dpo --output my-model --merge
    """
    from diffalign.train.again import export_again

    with one_clear_line():
        if merge and kohya:
            raise ValueError(
                "--merge folds the LoRA away that --kohya would write: export twice, each to its folder"
            )
        typer.echo(export_again(run, output, merge, kohya))


@app.command()
def cache(recipe: Recipe, overrides: Overrides = None) -> None:
    """Encode a recipe's images and prompts ahead of training.

    Example: diffalign cache my.yaml
    """
    from diffalign.train.align import cache_only

    set_up_logging()
    with one_clear_line():
        cache_only(recipe_path(recipe), overrides or [])


@recipes_app.command("list")
def recipes_list() -> None:
    """List the packaged recipes.

    Example: diffalign recipes list
    """
    from diffalign.recipes import recipes

    for name, line in recipes():
        typer.echo(f"{name:24s} {line}")


@recipes_app.command("copy")
def recipes_copy(name: str, to: Path) -> None:
    """Copy a packaged recipe, never over a file that is there.

    Example: diffalign recipes copy sd15-dpo-lora my.yaml
    """
    from diffalign.recipes import copy_recipe

    with one_clear_line():
        typer.echo(copy_recipe(name, to))


@app.command()
def options(
    block: Annotated[
        str,
        typer.Argument(help="optim, data.world, objective.dpo, corruptor.ddim_inversion, space.pixel, ..."),
    ] = "",
) -> None:
    """Explain the options of a recipe.

    Example: diffalign options objective.dpo
    """
    from diffalign.recipes import option_lines

    with one_clear_line():
        for line in option_lines(block):
            typer.echo(line)


@bench_app.command("train")
def bench_train(
    recipe: Recipe = "shapes-unet-dpo",
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=1, help="measured steps, after 3 for warming up")] = 20,
    yardstick: Annotated[
        bool, typer.Option(help="also time the usual script: VAE and text encoder in the loop")
    ] = True,
) -> None:
    """Print pairs/s, the share of each phase, and peak memory of training steps.

    Example: diffalign bench train shapes-dit-dpo --steps 10
    """
    from diffalign.bench import bench

    with one_clear_line():
        for line in bench(recipe_path(recipe), overrides or [], steps, yardstick):
            typer.echo(line)


@app.command()
def doctor() -> None:
    """Show versions, devices and attention backends, and what is wrong.

    Example: diffalign doctor
    """
    from diffalign import doctor as doctors

    findings = doctors.inspect()
    console = Console()
    console.print(doctors.render(findings))
    if doctors.problems(findings):
        raise typer.Exit(1)


def main() -> None:
    """Entry of the ``diffalign`` command."""
    app()


if __name__ == "__main__":
    main()
