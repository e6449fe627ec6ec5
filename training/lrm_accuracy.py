"""Train a latent reward model on simulated votes and write its accuracy by noise level into the docs.

python training/lrm_accuracy.py                       # the defaults make the table of docs/latent_rewards.md
python training/lrm_accuracy.py votes=500 steps=50 --work outputs/lrm-small
python training/lrm_accuracy.py policy=samples/shapes/dit 'scorer=""' taste=dark --work outputs/lrm/dit \
    --marks "latent rewards of a flow"                # the second table
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from diffalign.config import load
from diffalign.evaluate.report import installed_versions
from diffalign.world.latent_rewards import LatentPlan, check_marks, markdown, study, write_table

PAGE = Path("docs/latent_rewards.md")


def main(
    changes: Annotated[list[str] | None, typer.Argument(help="key=value of LatentPlan")] = None,
    work: Annotated[Path, typer.Option(help="model and resume state; goes on here")] = Path("outputs/lrm"),
    page: Annotated[Path, typer.Option(help="page with the marks")] = PAGE,
    marks: Annotated[str, typer.Option(help="of the table in it")] = "latent rewards",
) -> None:
    """Train, measure, write, print."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    check_marks(page, marks)  # before the training, not after it
    found = study(load(LatentPlan, {}, changes or []), work)
    commit = installed_versions().get("commit", "unknown")[:12]
    table = f"{markdown(found)} Made {datetime.now(UTC):%Y-%m-%d} at commit {commit}."
    write_table(page, table, marks)
    typer.echo(table)


if __name__ == "__main__":
    typer.run(main)
