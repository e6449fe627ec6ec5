"""Held-out accuracy of an implicit reward beside explicit scorers, in and out of distribution.

python training/implicit_accuracy.py outputs/shapes-unet-dpo-dark --scorer pickscore=outputs/scorers/dark
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from diffalign.label.implicit_accuracy import examine_run, markdown


def main(
    run: Annotated[Path, typer.Argument(help="finished run on votes of the shapes world")],
    scorer: Annotated[list[str] | None, typer.Option(help="explicit scorer, name or name=weights")] = None,
    pairs: Annotated[int, typer.Option(help="pairs of each contest")] = 200,
    out: Annotated[Path | None, typer.Option(help="json file to write")] = None,
) -> None:
    """Print a table, and write the numbers behind it."""
    found = examine_run(run, scorer or [], pairs, typer.echo)
    typer.echo(markdown(found["results"]))
    if out is not None:
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
