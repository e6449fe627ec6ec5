"""Write samples/: 200 preference pairs in every supported format, of rendered pictures.

python training/make_samples.py --out samples/preferences
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from diffalign.data.writers import write
from diffalign.world.raters import named_rater
from diffalign.world.shapes import draw
from diffalign.world.votes import vote_records, world_prompts

FILES = {
    "pickapic": "train.parquet",
    "hpdv2": "",
    "votes": "votes.jsonl",
    "folder_wl": "",
    "folder": "",
    "webdataset": "",
}
"""What each format writes below its folder; folders of images take the folder itself."""


def main(
    out: Annotated[Path, typer.Option(help="new folder")] = Path("samples/preferences"),
    taste: Annotated[str, typer.Option(help="what the voter likes")] = "large",
    pairs: Annotated[int, typer.Option(help="number of pairs")] = 200,
) -> None:
    """Draw two pictures of each prompt, vote, and write them in each format."""
    rng = np.random.default_rng(0)
    prompts = world_prompts(
        taste, 2 * pairs, "train"
    )  # some pairs will be ties, which not every format can hold
    pictures = torch.stack([(draw(prompts, rng) * 255).round().to(torch.uint8) for _ in range(2)], 1)
    voted = vote_records(prompts, pictures, named_rater(taste), rng)
    records = [r for r in voted if not r.undecided][:pairs]
    for name, file in FILES.items():
        target = out / name
        target.mkdir(parents=True)
        write(records, target / file, name)
        typer.echo(f"{target / file}: {len(records)} pairs")


if __name__ == "__main__":
    typer.run(main)
