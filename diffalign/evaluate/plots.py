"""Plots of an evaluation: intervals, categories, gains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffalign.evaluate.details import Details, Range
from diffalign.evaluate.report import Report
from diffalign.evaluate.summary import Judged

Bar = tuple[str, Range]


def write_plots(judged: Judged, report: Report, folder: Path) -> list[Path]:
    """Write PNG files into ``folder`` and return them: win rates, gains, and what else there is."""
    folder.mkdir(parents=True, exist_ok=True)
    details = report.get("details", Details())
    written = [_forest(win_rates(report), "win rate", 0.5, folder / "win_rates.png"), _gains(judged, folder)]
    groups = [
        (f"{m}: {name}", r) for m, rows in details.get("categories", {}).items() for name, r in rows.items()
    ]
    written += [_forest(groups, "win rate by category", 0.5, folder / "categories.png")] if groups else []
    league = [(row["model"], row["gain"]) for row in details.get("league", [])]
    if league:
        written.append(_forest(league, "log-strength minus the base's", 0.0, folder / "standings.png"))
    return written


def win_rates(report: Report) -> list[Bar]:
    """A bar for each comparison."""
    return [
        (
            f"{row['model']}: {row['metric']}" + ("" if row["held_out"] else " (trained on)"),
            Range(value=row["win_rate"], low=row["ci_low"], high=row["ci_high"]),
        )
        for row in report["comparisons"]
    ]


def _forest(bars: Sequence[Bar], title: str, middle: float, file: Path) -> Path:
    """Points with intervals, one below the other."""
    figure, axes = _figure(0.9 + 0.32 * len(bars))
    for i, (_, found) in enumerate(bars):
        axes.plot([found["low"], found["high"]], [i, i], color="#33658a", linewidth=2)
        axes.plot([found["value"]], [i], "o", color="#33658a")
    axes.axvline(middle, color="#999999", linewidth=1, linestyle="--")
    axes.set_yticks(range(len(bars)), [name for name, _ in bars])
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.set_xlabel(f"{title}, 95 % interval, prompts resampled")
    return _save(figure, file)


def _gains(judged: Judged, folder: Path) -> Path:
    """Histogram of the paired gains by the primary scorer."""
    name, table = judged.analysis.primary, judged.table
    scores, unit = table.scores[name], judged.units[name]
    figure, axes = _figure(3.0)
    for i, model in enumerate(table.models[1:], 1):
        axes.hist(((scores[i] - scores[0]) / unit).ravel(), bins=40, histtype="step", label=model)
    for side in (-judged.analysis.tie_margin_sd, judged.analysis.tie_margin_sd):
        axes.axvline(side, color="#999999", linewidth=1, linestyle="--")
    axes.set_xlabel(f"paired gain in s.d. of the base's seeds, {name}; a tie between the lines")
    axes.set_ylabel("pictures")
    axes.legend(frameon=False)
    return _save(figure, folder / "gains.png")


def _figure(height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, height), layout="constrained")
    FigureCanvasAgg(figure)  # a picture needs no screen
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, file: Path) -> Path:
    figure.savefig(file, dpi=120)
    return file
