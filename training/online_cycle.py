"""Online pairs on a taste that runs in a circle, by a general preference judge and by Bradley-Terry.

python training/online_cycle.py                 # makes the table of docs/studies/online_cycle.md; goes on
python training/online_cycle.py seeds=[0] --work outputs/other
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from diffalign.config import load
from diffalign.evaluate.report import installed_versions
from diffalign.world.latent_rewards import write_table
from diffalign.world.online_cycle import CyclePlan, markdown, study

WORK, PAGE = Path("outputs/studies/online_cycle"), Path("docs/studies/online_cycle.md")


def main(
    changes: Annotated[list[str] | None, typer.Argument(help="key=value of CyclePlan")] = None,
    work: Annotated[Path, typer.Option(help="judges, runs and figures; goes on here")] = WORK,
    page: Annotated[Path, typer.Option(help="page with the marks")] = PAGE,
) -> None:
    """Train, look, write, print."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    table = markdown(study(load(CyclePlan, {}, changes or []), work))
    commit = installed_versions().get("commit", "unknown")[:12]
    made = f"{table} Made {datetime.now(UTC):%Y-%m-%d} at commit {commit}."
    write_table(page, made, "online cycle")
    typer.echo(made)


if __name__ == "__main__":
    typer.run(main)
