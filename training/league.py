"""Run every objective on the shapes pipelines and write docs/league.md; goes on where it stopped.

accelerate launch training/league.py                     # all runs that are missing (hours on 2 cores)
accelerate launch training/league.py --page-only         # only write the page again
accelerate launch training/league.py --online            # the league of online methods
accelerate launch training/league.py training/studies/rules.yaml  # a study: one question, its own page
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffalign.league.run import run_league


def main(
    league_file: Annotated[Path, typer.Argument(help="what competes")] = Path("training/league.yaml"),
    runs: Annotated[Path | None, typer.Option(help="runs; else outputs/league or /studies/NAME")] = None,
    out: Annotated[Path | None, typer.Option(help="page and picture; else docs or docs/studies")] = None,
    most: Annotated[int, typer.Option(help="stop after so many runs; 0 = when all are made")] = 0,
    at_once: Annotated[int, typer.Option(help="runs at the same time")] = 1,
    only: Annotated[list[str] | None, typer.Option(help="pipelines to run; all by default")] = None,
    page_only: Annotated[bool, typer.Option(help="run nothing")] = False,
    online: Annotated[bool, typer.Option("--online", help="training/league_online.yaml")] = False,
) -> None:
    """Make the missing runs, then the page."""
    file = Path("training/league_online.yaml") if online else league_file
    chosen = only or []
    line = run_league(file, runs=runs, out=out, only=chosen, most=most, at_once=at_once, page_only=page_only)
    typer.echo(line)


if __name__ == "__main__":
    typer.run(main)
