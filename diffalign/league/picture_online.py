"""The picture of an online league: trained reward over pictures made, held-out win rate over seconds."""

from __future__ import annotations

import colorsys
import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffalign.league.labelling import Box, apart, beside
from diffalign.league.picture import Tables
from diffalign.league.results import ENOUGH, MOST_LOST, Row

Families = Mapping[str, Sequence[str]]
"""Methods by their kind."""
MEAN_OF = 5
"""Iterations that a point of a line is the mean of: their prompts differ, and so do their rewards."""
HUES = (0.58, 0.36, 0.08, 0.75, 0.94)
"""Of the families, in their order, as parts of the circle: blue, green, orange, violet, red."""
STYLES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
SMALL = 9
"""Size of names, in points."""
DPI = 110
DOT = 10
"""Room that a point takes, in pixels."""


@dataclass(frozen=True, kw_only=True)
class Ink:
    """How a method is drawn."""

    colour: Any = "0.45"
    style: Any = "-"


def draw_online(tables: Tables, families: Families, file: Path) -> None:
    """A row of panels for each pipeline: lines of the trained reward, points of win rate and time.

    Args:
        tables: rows by pipeline, as ``learners`` leaves them.
        families: methods by kind, which share a hue.
        file: where the picture goes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.2 * len(tables)), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(tables), 2, squeeze=False, width_ratios=(1.1, 1))
    inks = inks_of(families)
    for (left, right), (name, found) in zip(panels, tables.items(), strict=True):
        _rewards(left, name, found, inks)
        _wins(right, name, found, inks)
    _legends(figure, families, inks)
    figure.draw_without_rendering()  # only then is it known how large the panels are
    figure.set_layout_engine("none")
    for (left, right), found in zip(panels, tables.values(), strict=True):
        _name_lines(left, found, inks)
        _name_points(right, found, inks)
    figure.savefig(file)


def learners(tables: Tables) -> Tables:
    """Rows whose runs have more than one iteration, as the base's have not; pipelines without any are out."""
    found = {name: [r for r in some if any(x.steps > 1 for x in r.runs)] for name, some in tables.items()}
    return {name: some for name, some in found.items() if some}


def inks_of(families: Families) -> dict[str, Ink]:
    """Ink of each method that has a family: shades about one hue, from dark to light, in different styles."""
    made: dict[str, Ink] = {}
    for hue, methods in zip(itertools.cycle(HUES), families.values(), strict=False):
        for i, method in enumerate(methods):
            share = i / max(1, len(methods) - 1)
            colour = colorsys.hls_to_rgb(hue - 0.03 + 0.06 * share, 0.28 + 0.28 * share, 0.8)
            made[method] = Ink(colour=colour, style=STYLES[i % len(STYLES)])
    return made


def curve(row: Row) -> tuple[list[float], list[float]]:
    """Pictures made and trained reward, the mean of the seeds and of MEAN_OF iterations about each point.

    Both are empty where the rewards of its runs are not known.
    """
    known = [r for r in row.runs if r.rewards]
    steps = min((len(r.rewards) for r in known), default=0)
    width = min(MEAN_OF, steps)
    apiece = statistics.fmean(r.pictures / r.steps for r in known) if known else 0.0
    xs, ys = list[float](), list[float]()
    for first in range(steps - width + 1) if known else ():
        window = range(first, first + width)
        values = [v for r in known for i in window if (v := r.rewards[i]) is not None]
        if values:
            xs.append(apiece * (first + (width + 1) / 2))
            ys.append(statistics.fmean(values))
    return xs, ys


def place(row: Row) -> tuple[float, float]:
    """Seconds of training and win rate, as the table has them."""
    return row.median(lambda r: r.seconds), row.mean(lambda r: r.win_rate)


def _rewards(axes: Any, name: str, found: Sequence[Row], inks: Mapping[str, Ink]) -> None:
    """Lines of the trained reward."""
    lines = {row.method: curve(row) for row in found}
    for method, (xs, ys) in lines.items():
        ink = inks.get(method, Ink())
        axes.plot(xs, ys, color=ink.colour, linestyle=ink.style, linewidth=1.8)
    without = ", ".join(method for method, (xs, _) in lines.items() if not xs)
    axes.set(
        title=f"{name}: the reward that is trained", ylabel=f"mean reward of {MEAN_OF} iterations",
        xlabel="pictures made" + (f" (without a line: {without})" if without else ""),
    )  # fmt: skip


def _wins(axes: Any, name: str, found: Sequence[Row], inks: Mapping[str, Ink]) -> None:
    """Win rates of the held-out judge with their intervals, and the rate that is asked for."""
    axes.axhline(ENOUGH, color="0.6", linewidth=0.9, linestyle="--")
    for row in found:
        ink, (x, y) = inks.get(row.method, Ink()), place(row)
        ends = row.mean(lambda r: r.ci_low), row.mean(lambda r: r.ci_high)
        axes.plot((x, x), ends, color=ink.colour, alpha=0.3, linewidth=1.5, zorder=1)
        fill = ink.colour if row.obeys else "white"
        axes.plot(x, y, "o", color=ink.colour, markerfacecolor=fill, markersize=6)
    axes.set_xlim(0, 1.15 * max(place(row)[0] for row in found))
    axes.set(
        title=f"{name}: the held-out judge", xlabel="seconds of training", ylabel="win rate over the base"
    )


def _legends(figure: Any, families: Families, inks: Mapping[str, Ink]) -> None:
    """What hues, markers and the dashed line mean, above the panels."""
    from matplotlib.lines import Line2D

    hues = [Line2D([], [], color=inks[m[0]].colour, linewidth=3, label=f) for f, m in families.items() if m]
    fills = {f"obeys within {100 * MOST_LOST:.0f} points": "0.3", "obeys less": "white"}
    marks = [
        Line2D([], [], color="0.3", marker="o", linestyle="", markerfacecolor=fill, label=label)
        for label, fill in fills.items()
    ]
    marks.append(Line2D([], [], color="0.6", linestyle="--", label=f"{ENOUGH} of wins"))
    for handles, side in ((hues, "left"), (marks, "right")):
        if handles:
            where = f"outside upper {side}"
            figure.legend(handles=handles, loc=where, ncols=len(handles), fontsize=SMALL - 1, frameon=False)


def _name_lines(axes: Any, found: Sequence[Row], inks: Mapping[str, Ink]) -> None:
    """Names to the right of the ends of lines, moved apart."""
    ends = {row.method: (xs[-1], ys[-1]) for row in found for xs, ys in [curve(row)] if xs}
    if not ends:
        return
    sizes, panel = [_size(axes, method) for method in ends], axes.get_window_extent()
    right = 1.06 * max(x for x, _ in ends.values())
    axes.set_xlim(0, right / (0.98 - max(width for width, _ in sizes) / panel.width))
    low, high = axes.get_ylim()
    line = 1.05 * max(height for _, height in sizes) * (high - low) / panel.height
    for (method, end), y in zip(ends.items(), apart([y for _, y in ends.values()], line), strict=True):
        _name(axes, method, end, (right, y), inks, "left")


def _name_points(axes: Any, found: Sequence[Row], inks: Mapping[str, Ink]) -> None:
    """Names beside points, clear of each other."""
    points = [(float(x), float(y)) for x, y in axes.transData.transform([place(row) for row in found])]
    taken = [Box.around(x, y, DOT, DOT) for x, y in points]
    panel = axes.get_window_extent()
    inside = Box(left=panel.x0, bottom=panel.y0, right=panel.x1, top=panel.y1)
    sizes = [_size(axes, row.method) for row in found]
    boxes = beside(points, sizes, inside, taken, 0.8 * DOT)
    back = axes.transData.inverted()
    for row, box in zip(found, boxes, strict=True):
        _name(axes, row.method, place(row), back.transform(box.centre), inks, "center")


def _size(axes: Any, text: str) -> tuple[float, float]:
    """Width and height of a name, in pixels."""
    drawn = axes.text(0, 0, text, fontsize=SMALL, weight="bold")
    found = drawn.get_window_extent()
    drawn.remove()
    return found.width, found.height


def _name(axes: Any, method: str, point: Any, at: Any, inks: Mapping[str, Ink], side: str) -> None:
    """A method's name with a thin line to its point."""
    colour = inks.get(method, Ink()).colour
    line = {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 1}
    axes.annotate(
        method, point, at, fontsize=SMALL, color=colour, weight="bold", va="center", ha=side, arrowprops=line
    )
