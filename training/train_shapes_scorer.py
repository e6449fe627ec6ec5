"""Make the scorer of the shapes world from nothing: contrastive pre-training, then one rater's votes.

python training/train_shapes_scorer.py                # the defaults remake samples/shapes/scorer (10 minutes)
python training/train_shapes_scorer.py --taste small --out outputs/scorers/small
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from diffalign.world.clip import FINETUNE, ScorerPlan, make_scorer


def main(
    taste: Annotated[
        str, typer.Option(help="whose votes to learn, see diffalign.world.raters.TASTES")
    ] = "large",
    work: Annotated[Path, typer.Option(help="resume state")] = Path("outputs/shapes-scorer"),
    out: Annotated[Path, typer.Option(help="where the scorer is saved")] = Path("samples/shapes/scorer"),
    pretrain_steps: Annotated[int, typer.Option(help="steps of pre-training")] = ScorerPlan.pretrain_steps,
    finetune_steps: Annotated[int, typer.Option(help="steps on votes")] = FINETUNE.steps,
    votes: Annotated[int, typer.Option(help="noisy votes to learn from")] = ScorerPlan.votes,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 = torch's choice")] = 0,
) -> None:
    """Train, save and print the held-out accuracy beside the best possible."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if threads:
        torch.set_num_threads(threads)
    finetune = replace(FINETUNE, steps=finetune_steps)
    plan = ScorerPlan(taste=taste, pretrain_steps=pretrain_steps, finetune=finetune, votes=votes)
    report = make_scorer(plan, work, out)
    typer.echo(json.dumps({key: report[key] for key in ("held_out", "best_possible")}, indent=2))


if __name__ == "__main__":
    typer.run(main)
