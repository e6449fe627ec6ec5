"""Pictures of leagues and studies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffalign.league.results import MOST_LOST, Row

Tables = Mapping[str, Sequence[Row]]
"""Rows by pipeline."""
WIDE = 20
"""Ratio of the largest to the least value above which an axis is logarithmic."""


def draw_scatter(tables: Tables, file: Path) -> None:
    """Gain against change of obedience, a point for each method, a panel for each pipeline that has runs."""
    tables = {name: found for name, found in tables.items() if any(row.runs for row in found)}
    figure, panels = _panels(tables, (6.5, 5.2))
    for axes, (name, found) in zip(panels, tables.items(), strict=True):
        axes.axvspan(-100, -100 * MOST_LOST, color="0.93")
        axes.axhline(0, color="0.8", linewidth=0.8)
        played = [row for row in found if row.runs]
        xs = [row.mean(lambda r: 100 * (r.obedience - r.obedience_base)) for row in played]
        ys = [row.mean(lambda r: r.gain) for row in played]
        axes.scatter(xs, ys, c=["tab:blue" if row.known else "0.5" for row in played], s=22)
        for x, y, row in zip(xs, ys, played, strict=True):
            axes.annotate(row.method, (x, y), xytext=(4, 3), textcoords="offset points", fontsize=7)
        axes.set_xlim(min([-6.0, *xs]) - 1, max([2.0, *xs]) + 3)
        axes.set(title=name, xlabel="change of prompt obedience in points", ylabel="gain in s.d. of the base")
    figure.savefig(file, dpi=110)


def draw_curve(tables: Tables, key: str, file: Path) -> None:
    """Win rate over the varied option, a line with intervals for each method, a panel for each pipeline."""
    figure, panels = _panels(tables, (6.5, 4.2))
    for axes, (name, found) in zip(panels, tables.items(), strict=True):
        axes.axhline(0.5, color="0.8", linewidth=0.8)
        for method in dict.fromkeys(row.method for row in found):
            _line(axes, key, [row for row in found if row.method == method and row.runs])
        xs = [row.point[key] for row in found]
        if min(xs) > 0 and max(xs) > WIDE * min(xs):
            axes.set_xscale("log")
        axes.set(title=name, xlabel=key, ylabel="win rate over the base")
        if any(row.runs for row in found):
            axes.legend(fontsize=8)
    figure.savefig(file, dpi=110)


def _line(axes: Any, key: str, played: Sequence[Row]) -> None:
    """One method's line."""
    xs, ys = [r.point[key] for r in played], [r.mean(lambda x: x.win_rate) for r in played]
    low = [y - r.mean(lambda x: x.ci_low) for y, r in zip(ys, played, strict=True)]
    high = [r.mean(lambda x: x.ci_high) - y for y, r in zip(ys, played, strict=True)]
    if played:
        axes.errorbar(xs, ys, yerr=(low, high), marker="o", markersize=3, capsize=2, label=played[0].method)


def _panels(tables: Tables, size: tuple[float, float]) -> tuple[Any, Sequence[Any]]:
    """A figure with a panel for each pipeline."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size[0] * len(tables), size[1]), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, len(tables), squeeze=False)[0]
