"""Picture, table and page of a loop's rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from diffalign.evaluate.report import write_atomic

if TYPE_CHECKING:
    from diffalign.loop.run import RoundResult

HEADER = (
    "round",
    "votes",
    "trained on",
    "win rate [95 %]",
    "gain in s.d.",
    "obedience",
    "CPU seconds",
)


ABOUT = """`diffalign loop` on the shapes UNet: in each round the model as it is draws two pictures of each of
the voted prompts, a simulated person (taste *large*, Bradley-Terry noise, ties, both bad) votes through the
format of the gallery, and the next adapter is trained on these votes from the one before. Win rates are over
the untouched base, by the person's noise-free taste, on held-out prompts; a gain within 0.25 s.d. is a tie.
Intervals resample prompts.
"""


def draw_rounds(results: Sequence[RoundResult], file: Path, title: str = "") -> None:
    """Draw win rate against the base, with intervals, and obedience, over rounds; round 0 is the base."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    shown = [r for r in results if r.win_rate is not None]
    rates, x = [r.win_rate or 0.0 for r in shown], [r.round for r in shown]
    low = [v - (r.low or 0.0) for v, r in zip(rates, shown, strict=True)]
    high = [(r.high or 0.0) - v for v, r in zip(rates, shown, strict=True)]
    axes.axhline(0.5, color="0.8", linewidth=0.8)
    axes.errorbar(
        [0, *x], [0.5, *rates], yerr=([0, *low], [0, *high]), marker="o", capsize=3, label="win rate"
    )
    obeyed = [(r.round, r.obedience) for r in shown if r.obedience is not None]
    if obeyed:
        start = (0, shown[0].obedience_base)
        axes.plot(
            *zip(start, *obeyed, strict=True), marker="s", linestyle="--", color="0.5", label="obedience"
        )
    axes.set(xlabel="round", ylabel="share", ylim=(0, 1.02), xticks=[0, *x], title=title)
    axes.legend(loc="lower right")
    partial = file.with_name(f".{file.name}.partial")
    figure.savefig(partial, dpi=110, format="png")
    partial.replace(file)


def cells(result: RoundResult) -> tuple[str, ...]:
    """A round's line of a table, in the order of ``HEADER``."""
    r = result
    rate = "-" if r.win_rate is None else f"{r.win_rate:.3f} [{r.low or 0.0:.3f}, {r.high or 0.0:.3f}]"
    obeyed = "-" if r.obedience is None else f"{r.obedience:.1%} (base {r.obedience_base or 0.0:.1%})"
    gain = "-" if r.gain_sd is None else f"{r.gain_sd:+.2f}"
    return (
        str(r.round), str(r.votes), str(r.records), rate, gain, obeyed,
        "-" if r.cpu_seconds is None else f"{r.cpu_seconds:.0f}",
    )  # fmt: skip


def show_rounds(results: Sequence[RoundResult], console: Console) -> None:
    """Print a line per round; nothing before the first is through."""
    if not results:
        return
    table = Table(*HEADER, box=None)
    for result in results:
        table.add_row(*cells(result))
    console.print(table)


def markdown(results: Sequence[RoundResult]) -> str:
    """The same as Markdown."""
    lines = [HEADER, ("---",) * len(HEADER), *map(cells, results)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def write_page(loops: Mapping[str, Sequence[RoundResult]], folder: Path) -> None:
    """Write loop.md and a picture of each objective, as ``training/loop.py`` does.

    Args:
        loops: rounds by objective.
        folder: of the page.
    """
    text = "# The loop\n\nWritten by `training/loop.py`.\n\n" + ABOUT
    for name, results in loops.items():
        draw_rounds(results, folder / f"loop-{name}.png", name)
        text += f"\n## {name}\n\n{markdown(results)}\n![win rate over rounds](loop-{name}.png)\n"
    write_atomic(folder / "loop.md", text)
