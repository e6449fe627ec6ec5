"""Run the loop with simulated raters and write docs/loop.md and its pictures.

python training/loop.py                        # 3 rounds of DPO and of KTO, minutes on 2 cores
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffalign.loop.options import LoopOptions
from diffalign.loop.picture import write_page
from diffalign.loop.run import LoopResult, run_loop


def main(
    rounds: Annotated[int, typer.Option(help="rounds")] = 3,
    runs: Annotated[Path, typer.Option(help="folder of the loops; goes on where they stopped")] = Path(
        "outputs"
    ),
    out: Annotated[Path, typer.Option(help="folder of the page")] = Path("docs"),
    objective: Annotated[list[str] | None, typer.Option(help="dpo, kto; both by default")] = None,
) -> None:
    """Run what is missing, then write the page."""
    found: dict[str, LoopResult] = {}
    for name in objective or ["dpo", "kto"]:
        found[name] = run_loop(LoopOptions(objective=name), rounds, runs / f"loop-{name}", typer.echo)
    write_page({name: result.rounds for name, result in found.items()}, out)


if __name__ == "__main__":
    typer.run(main)
