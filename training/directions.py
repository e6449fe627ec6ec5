"""One model for every mixture of two rewards, against one model per reward; writes docs/directions.md.

python training/directions.py                  # about ten minutes on one core; goes on where it stopped
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffalign.personalize.direction_page import write_page
from diffalign.personalize.direction_study import StudyOptions, study


def main(
    steps: Annotated[int, typer.Option(help="optimizer steps of each run")] = 200,
    prompts: Annotated[int, typer.Option(help="held-out prompts")] = 32,
    encoder_rate: Annotated[float, typer.Option(help="learning rate of the encoder of directions")] = 1e-3,
    branch_rate: Annotated[float, typer.Option(help="learning rate of the layers' keys and values")] = 1e-3,
    runs: Annotated[Path, typer.Option(help="folder of runs; goes on where they stopped")] = Path(
        "outputs/directions"
    ),
    out: Annotated[Path, typer.Option(help="folder of the page")] = Path("docs"),
) -> None:
    """Run what is missing, then write the page."""
    options = StudyOptions(steps=steps, prompts=prompts, encoder_rate=encoder_rate, branch_rate=branch_rate)
    write_page(options, study(options, runs, typer.echo), out)


if __name__ == "__main__":
    typer.run(main)
