"""Make the tiny pipelines of the shapes world: VAE, its decoder again, UNet, MMDiT, each resumable.

python training/pretrain_shapes.py all                # the defaults remake samples/shapes (hours on 2 cores)
python training/pretrain_shapes.py unet --steps 2000  # one stage; run again to go on where it stopped
python training/pretrain_shapes.py examine            # state how well all three do
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from diffalign.world.obedience import examine
from diffalign.world.pretrain import Budget, pretrain


def main(
    stage: Annotated[
        Literal["vae", "decoder", "unet", "dit", "all", "examine"], typer.Argument(help="what to do")
    ],
    work: Annotated[Path, typer.Option(help="resume state and cached latents")] = Path("outputs/pretrain"),
    out: Annotated[Path, typer.Option(help="where the pipelines are saved")] = Path("samples/shapes"),
    steps: Annotated[int, typer.Option(help="steps in all; 0 = the stage's default")] = 0,
    minutes: Annotated[float, typer.Option(help="stop (resumably) after so many minutes; 0 = never")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 = torch's choice")] = 0,
    compile: Annotated[bool, typer.Option(help="torch.compile: faster; needs a C++ compiler")] = False,
) -> None:
    """Train one stage, or all of them in order; then measure what came out."""
    stages = ("vae", "decoder", "unet", "dit") if stage == "all" else (stage,)
    for name in (s for s in stages if s != "examine"):
        budget = Budget(steps=steps, minutes=minutes, threads=threads, compile=compile)
        pretrain(name, work=work, out=out, budget=budget)
    for name in ("vae", "unet", "dit") if stage in ("all", "examine") else ():
        typer.echo(f"{name}: {examine(out, name)}")


if __name__ == "__main__":
    typer.run(main)
