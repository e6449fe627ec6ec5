"""Run every objective on the shapes pipelines and write docs/league.md; goes on where it stopped.

accelerate launch training/league.py                     # all runs that are missing (hours on 2 cores)
accelerate launch training/league.py --most 10           # ten of them
accelerate launch training/league.py --at-once 4         # several at once, on a GPU
accelerate launch training/league.py --only unet         # on one pipeline
accelerate launch training/league.py --page-only         # only write the page again
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffalign.league.config import read_league
from diffalign.league.page import write_page
from diffalign.league.play import all_valid, missing, play


def main(
    league_file: Annotated[Path, typer.Argument(help="what competes")] = Path("training/league.yaml"),
    runs: Annotated[Path, typer.Option(help="folder of the runs")] = Path("outputs/league"),
    out: Annotated[Path, typer.Option(help="where league.md, league.json and league.png go")] = Path("docs"),
    most: Annotated[int, typer.Option(help="stop after so many runs; 0 = when all are made")] = 0,
    at_once: Annotated[int, typer.Option(help="runs at the same time")] = 1,
    only: Annotated[list[str] | None, typer.Option(help="pipelines to run; all by default")] = None,
    page_only: Annotated[bool, typer.Option(help="run nothing")] = False,
) -> None:
    """Make the missing runs, then the page."""
    league = read_league(league_file)
    if not page_only:
        play(league.on(only or []), runs, most=most, at_once=at_once)
    write_page(league, all_valid(league, runs), out)
    typer.echo(f"{len(missing(league, runs))} runs are left; {out / 'league.md'}")


if __name__ == "__main__":
    typer.run(main)
