"""Plots of personal figures: the confusion matrix, and rates by the number of votes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffalign.personalize.metrics import Confusion, Curve

LABELLED = 30
"""People up to whom every row is named."""


def plot_confusion(found: Confusion, file: Path) -> Path:
    """Write a PNG: rows are people for whom pictures were made, columns are judges; the diagonal is own."""
    figure, axes = _figure(6.4, 5.4)
    limit = float(abs(found.table).max())
    drawn = axes.imshow(found.table, cmap="RdBu", vmin=-limit, vmax=limit)
    if len(found.names) <= LABELLED:
        axes.set_xticks(range(len(found.names)), found.names, rotation=90)
        axes.set_yticks(range(len(found.names)), found.names)
    axes.set_xlabel("judge of")
    axes.set_ylabel("pictures made for")
    axes.set_title(f"own first for {found.top1.value:.0%} of judges (chance {1 / len(found.names):.0%})")
    figure.colorbar(drawn, ax=axes, label="s.d. of the judge")
    return _saved(figure, file)


def plot_curves(curves: Mapping[str, Curve], file: Path, label: str = "win rate over the base") -> Path:
    """Write a PNG: a line for each curve by name, with intervals over people."""
    figure, axes = _figure(5.6, 3.8)
    for name, curve in curves.items():
        low, high = ([getattr(r, side) for r in curve.rates] for side in ("low", "high"))
        (line,) = axes.plot(curve.votes, [r.value for r in curve.rates], marker="o", label=name)
        axes.fill_between(curve.votes, low, high, alpha=0.15, color=line.get_color())
    axes.axhline(0.5, color="#999999", linewidth=1, linestyle="--")
    axes.set_xscale("log", base=2)
    ticks = sorted({k for curve in curves.values() for k in curve.votes})
    axes.set_xticks(ticks, [str(k) for k in ticks])
    axes.set_xlabel("votes of the person")
    axes.set_ylabel(f"{label}, mean over people")
    axes.legend(frameon=False)
    return _saved(figure, file)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)  # a picture needs no screen
    return figure, figure.subplots()


def _saved(figure: Any, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
    return file
