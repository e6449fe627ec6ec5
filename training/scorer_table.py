"""Train every kind of scorer on simulated votes of the shapes world and write the table of the docs.

python training/scorer_table.py                     # the defaults make docs/scorers_table.md
python training/scorer_table.py votes=1000 steps=100 --out outputs/table.md
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from diffalign.config import load
from diffalign.world.scorer_table import PARTS, TablePlan, make_table, markdown


def main(
    changes: Annotated[list[str] | None, typer.Argument(help="key=value of TablePlan")] = None,
    out: Annotated[Path, typer.Option(help="markdown file; JSON beside")] = Path("docs/scorers_table.md"),
    part: Annotated[list[str] | None, typer.Option(help="make only this; the rest stays")] = None,
) -> None:
    """Train, measure, write, print."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    typer.echo(markdown(make_table(load(TablePlan, {}, changes or []), out, part or PARTS)))


if __name__ == "__main__":
    typer.run(main)
