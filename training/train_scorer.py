"""Train a PickScore-type scorer on preference pairs in any format that diffalign reads.

python training/train_scorer.py pairs.parquet --weights samples/shapes/scorer --out outputs/my-scorer
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated

import typer

from diffalign.data import read
from scorers import find_weights
from scorers.pickscore import PickScore
from scorers.train import TrainOptions, Vote, fit


def main(
    data: Annotated[Path, typer.Argument(help="file, folder or glob of pairs")],
    weights: Annotated[Path, typer.Option(help="saved CLIPModel with tokenizer to start from")],
    out: Annotated[Path, typer.Option(help="where scorer and accuracy.json go")] = Path("outputs/scorer"),
    steps: Annotated[int, typer.Option(help="steps at most")] = TrainOptions.steps,
    batch: Annotated[int, typer.Option(help="pairs per step")] = TrainOptions.batch,
    learning_rate: Annotated[float, typer.Option(help="highest rate")] = TrainOptions.learning_rate,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
) -> None:
    """Train on 80 % of the prompts, choose on 10 %, report the accuracy on the other 10 %."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    pairs = [r for r in read(data) if r.kind == "pair"]
    votes = [Vote(r.images[0], r.images[1], r.prompt, r.values[0]) for r in pairs]
    scorer = PickScore.load(find_weights("pickscore", weights), device=device)
    options = TrainOptions(steps=steps, batch=batch, learning_rate=learning_rate, warmup=steps // 8)
    typer.echo(json.dumps(fit(scorer, votes, out, options)["held_out"], indent=2))


if __name__ == "__main__":
    typer.run(main)
