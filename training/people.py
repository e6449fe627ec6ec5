"""Does alignment to single people help? Runs the study of training/people.yaml, goes on where it stopped.

python training/people.py                # both pipelines: about two hours on 2 cores
python training/people.py --only unet
python training/people.py --page-only    # only write docs/people_study.md again
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from diffalign.cli import one_clear_line
from diffalign.personalize.study_run import run_study


def main(
    file: Annotated[Path, typer.Argument(help="what is run")] = Path("training/people.yaml"),
    runs: Annotated[Path, typer.Option(help="runs and pictures")] = Path("outputs/people"),
    out: Annotated[Path, typer.Option(help="page, without its ending")] = Path("docs/people_study"),
    only: Annotated[list[str] | None, typer.Option(help="pipelines to run; all by default")] = None,
    loras: Annotated[bool, typer.Option(help="also one LoRA for each of some people")] = True,
    page_only: Annotated[bool, typer.Option(help="run nothing")] = False,
) -> None:
    """Make what is missing, then the page."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with one_clear_line():
        line = run_study(file, runs=runs, out=out, only=only or [], loras=loras, page_only=page_only)
    typer.echo(line)


if __name__ == "__main__":
    typer.run(main)
