"""Train a scorer on preferences in any format that diffalign reads, with its published loss and defaults.

accelerate launch training/train_scorer.py votes.parquet --scorer pickscore --weights samples/shapes/scorer \
    steps=300 batch=64 learning_rate=3e-4
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated

import typer

from diffalign.cli import one_clear_line
from diffalign.label.train import train_on


def main(
    data: Annotated[Path, typer.Argument(help="file, folder or glob of pairs, rankings or likes")],
    changes: Annotated[list[str] | None, typer.Argument(help="key=value of scorers.TrainOptions")] = None,
    scorer: Annotated[str, typer.Option(help="pickscore, hpsv2, mps, imagereward, pal, ...")] = "pickscore",
    weights: Annotated[Path, typer.Option(help="what to start from")] = Path("samples/shapes/scorer"),
    out: Annotated[Path, typer.Option(help="where scorer and accuracy.json go")] = Path("outputs/scorer"),
    format: Annotated[str, typer.Option(help="of the data")] = "auto",
    dim: Annotated[list[str] | None, typer.Option(help="further judgements of MPS, by name")] = None,
    precision: Annotated[str, typer.Option(help="no, bf16 or fp16")] = "no",
) -> None:
    """Train on 80 % of the prompts, choose on 10 %, report the accuracy on the other 10 %."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with one_clear_line():
        found = train_on(
            data, scorer, weights, out, changes or [], format=format, dims=dim or [], precision=precision
        )
    typer.echo(json.dumps(found["held_out"], indent=2))


if __name__ == "__main__":
    typer.run(main)
