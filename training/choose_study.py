"""Votes needed by each way of choosing what to vote on, against random; writes docs/choosing.md.

python training/choose_study.py                # pictures are kept in outputs/cache
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffalign.votes.choose_study import StudyOptions, page, scenes, study


def main(
    people: Annotated[int, typer.Option(help="simulated people")] = 40,
    cache: Annotated[Path, typer.Option(help="where pictures are kept")] = Path("outputs/cache"),
    out: Annotated[Path, typer.Option(help="page")] = Path("docs/choosing.md"),
) -> None:
    """Run the study and write its page."""
    options = StudyOptions(people=people)
    train, test = scenes(options, cache)
    out.write_text(page(study(options, train, test), options, test), encoding="utf-8")
    typer.echo(out.read_text(encoding="utf-8"))


if __name__ == "__main__":
    typer.run(main)
