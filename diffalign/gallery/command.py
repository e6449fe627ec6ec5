"""``diffalign gallery``: of folders of results, or of a finished training run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup


class GalleryGroup(TyperGroup):
    """``gallery RUN...`` is short for ``gallery write RUN...``, beside commands like ``gallery serve``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put ``write`` in front of arguments that name no command."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["write", *args]
        return super().parse_args(ctx, args)


gallery_app = typer.Typer(
    cls=GalleryGroup,
    no_args_is_help=True,
    help="Write a gallery: diffalign gallery RUN... -o gallery.html (all options: gallery write --help).",
)


@gallery_app.command("write")
def write(
    runs: Annotated[list[Path], typer.Argument(help="folders of results, or one training run")],
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML file")],
    title: Annotated[str, typer.Option(help="heading; the models' names by default")] = "",
    embed_limit: Annotated[
        int, typer.Option(min=0, help="MB of pictures in the file; more go to a folder beside it")
    ] = 150,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a gallery that is there")] = False,
    prompts: Annotated[
        int, typer.Option(min=0, help="of a training run: show so many prompts; 0 = as in the recipe")
    ] = 0,
) -> None:
    """Write the gallery of evaluated models into one HTML file that needs no network.

    Example: diffalign gallery runs/base runs/dpo -o gallery.html
    """
    from diffalign.cli import one_clear_line

    with one_clear_line():
        typer.echo(_written(runs, output, title, embed_limit * 2**20, overwrite, prompts))


def _written(
    runs: list[Path], output: Path, title: str, embed_limit: int, overwrite: bool, prompts: int
) -> Path:
    from diffalign.evaluate.results import NAME
    from diffalign.gallery.write import report_in, write_gallery_of

    if len(runs) == 1 and not (runs[0] / NAME).exists() and (runs[0] / "config.yaml").exists():
        from diffalign.train.again import gallery_again  # brings torch

        return gallery_again(runs[0], output, prompts, title=title, overwrite=overwrite)
    if prompts:
        raise ValueError("--prompts is for a training run: results are shown whole")
    return write_gallery_of(
        runs, output, report=report_in(runs), title=title, embed_limit=embed_limit, overwrite=overwrite
    )
