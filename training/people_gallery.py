r"""One prompt for several people, or directions, side by side: writes samples/gallery-people.html.

python training/people_gallery.py outputs/people/unet/single --user person-000 --user person-001 \
    --user person-002 --user person-003 --prompts 6 --user-guidance 4 \
    --scorers shapes-large,shapes-dark --trained-on ""
python training/people_gallery.py outputs/directions/directed    # directions in place of people
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from diffalign.evaluate.asked import Asked
from diffalign.evaluate.models import People
from diffalign.evaluate.run import evaluate_models
from diffalign.train.run import read_config, write_text
from diffalign.world.votes import world_prompts

TASTES = ["shapes-large=1", "shapes-large=1,shapes-dark=1", "shapes-dark=1", "shapes-large=1,shapes-dark=-1"]

JUDGE, TRAINED_ON = "pickscore=samples/shapes/scorer", "shapes-large,shapes-dark"


def main(
    run: Annotated[Path, typer.Argument(help="run that was trained with people or directions")],
    user: Annotated[list[str] | None, typer.Option(help="somebody of the run's people; several")] = None,
    direction: Annotated[list[str] | None, typer.Option(help="several; these where no user is named")] = None,
    user_guidance: Annotated[float, typer.Option(help="guidance of its own for people")] = 1.0,
    prompts: Annotated[int, typer.Option(help="held-out prompts of the shapes world")] = 12,
    scorers: Annotated[str, typer.Option(help="held-out judges, joined by commas")] = JUDGE,
    trained_on: Annotated[str, typer.Option(help="judges that the run was trained on")] = TRAINED_ON,
    out: Annotated[Path, typer.Option(help="the page")] = Path("samples/gallery-people.html"),
) -> None:
    """Draw what the gallery shows, and write it."""
    base = str(read_config(run)["policy"]["model"])
    who = People(
        user=tuple(user or ()), direction=tuple(direction or ([] if user else TASTES)),
        user_guidance=user_guidance,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prompts.txt"
        write_text(file, "\n".join(str(p) for p in world_prompts("large", prompts, "heldout")) + "\n")
        asked = Asked(
            models=(base, f"nobody={run}"), prompts=str(file), part="all", seeds=2, people=who,
            # the prompts are held out; a run on data in memory cannot say so itself
            allow_contaminated=True, scorers=tuple(scorers.split(",")),
            trained_on=tuple(filter(None, trained_on.split(","))),
            output=Path(folder) / "several-people",
        )  # fmt: skip
        evaluate_models(asked)
        write_text(out, (asked.output / "gallery.html").read_text(encoding="utf-8"))
    typer.echo(f"{out}: {out.stat().st_size / 2**20:.2f} MB")


if __name__ == "__main__":
    typer.run(main)
