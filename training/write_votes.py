"""Write the votes that a recipe's data.world block makes as a data set, to train on it as on any other.

python training/write_votes.py training/recipes/shapes-unet-dpo.yaml outputs/votes.parquet --format pickapic
accelerate launch training/align.py training/recipes/shapes-unet-dpo.yaml \
    data.world=null data.path=outputs/votes.parquet
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from diffalign.data.writers import write
from diffalign.train.align import load_recipe
from diffalign.train.prepare import read_records
from diffalign.train.progress import Screen
from diffalign.train.setup import make_policy


def main(
    recipe: Annotated[str, typer.Argument(help="recipe with a data.world block")],
    out: Annotated[Path, typer.Argument(help="new file or folder")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.sub=value ...")] = None,
    format: Annotated[str, typer.Option(help="pickapic, hpdv2, votes, folder or folder_wl")] = "pickapic",
) -> None:
    """Make the base's pictures (or take them from the cache), vote, and write all pairs."""
    config = load_recipe(recipe, overrides or [])
    policy = make_policy(config, torch.device("cpu"))
    records = read_records(config, policy, Screen(True, config.steps, config.batch, config.log.every))
    decided = [r for r in records if not r.undecided] if format in ("hpdv2", "folder_wl") else records
    out.parent.mkdir(parents=True, exist_ok=True)
    write(decided, out, format)
    typer.echo(f"{out}: {len(decided)} pairs")


if __name__ == "__main__":
    typer.run(main)
