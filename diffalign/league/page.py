"""docs/league.md, league.json and the picture of a league."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from diffalign.league.config import League
from diffalign.league.results import MOST_LOST, Result, Row, rows
from diffalign.train.run import write_text

HEAD = (
    "method", "gain in s.d.", "win rate [95 %]", "obedience", "diversity", "steps to 0.5 s.d.",
    "s to 0.5 s.d.", "s a run", "gain at 4x", "obedience at 4x", "seeds", "setting",
)  # fmt: skip
SWEEP_HEAD = (
    "method",
    "settings tried",
    "best gain",
    "median gain",
    "worst gain",
    "that obey",
    "best setting",
)
INTRO = """# League of the objectives

Every objective on the same pipeline, preferences and number of pictures seen, ranked by the mean gain of the
held-out judge in s.d. of the base, among those whose prompt obedience falls by at most {lost:.0f} points; the
others follow below the line. Settings were chosen on selection prompts, never on those reported here; every
method had the same number of tries, all of which are in the second table of each pipeline. Obedience and
diversity (Vendi score between the pictures of a prompt) are those of the model, with their change from the
base. Seconds are of training alone, on this machine. Rows without figures have not been run yet.

Written by `training/league.py` from {runs} runs (code {trees}).
"""


def write_page(league: League, results: Mapping[str, Result], folder: Path) -> None:
    """Write league.md, league.json and league.png into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    trees = ", ".join(sorted({r.tree for r in results.values()})) or "none"
    parts = [INTRO.format(lost=100 * MOST_LOST, runs=len(results), trees=trees), "![gains](league.png)\n"]
    tables = {name: rows(league, results, name) for name in league.pipelines}
    for name, found in tables.items():
        parts += [f"## {name}\n", table(HEAD, _lines(found)), f"\n### Settings tried on {name}\n"]
        parts.append(table(SWEEP_HEAD, [sweep_line(row) for row in found]) + "\n")
    write_text(folder / "league.md", "\n".join(parts))
    content = {"results": [asdict(r) for r in sorted(results.values(), key=lambda r: r.job)]}
    write_text(folder / "league.json", json.dumps(content, indent=1) + "\n")
    draw(tables, folder / "league.png")


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))


def _lines(found: Sequence[Row]) -> list[list[str]]:
    """Lines of the table, with an empty one between methods that obey and those that do not."""
    good = [line(row) for row in found if row.runs and row.obeys]
    bad = [line(row) for row in found if row.runs and not row.obeys]
    none = [line(row) for row in found if not row.runs]
    ruler = [["*obedience falls by more*", *[""] * (len(HEAD) - 1)]] if bad else []
    return [*good, *ruler, *bad, *none]


def line(row: Row) -> list[str]:
    """Cells of one method."""
    if not row.runs:
        return [f"`{row.method}`", *["not run yet"], *[""] * (len(HEAD) - 2)]
    low, high = row.mean(lambda r: r.ci_low), row.mean(lambda r: r.ci_high)
    spread = f" ± {statistics.stdev(r.gain for r in row.runs):.2f}" if len(row.runs) > 1 else ""
    long = row.long
    return [
        f"**`{row.method}`**" if row.known else f"`{row.method}`",
        f"{row.mean(lambda r: r.gain):+.2f}{spread}",
        f"{row.mean(lambda r: r.win_rate):.3f} [{low:.3f}, {high:.3f}]",
        change(row, lambda r: 100 * r.obedience, lambda r: 100 * r.obedience_base, 1),
        change(row, lambda r: r.diversity, lambda r: r.diversity_base, 2),
        _figure(row.at_half(lambda r: r.steps_to_half)),
        _figure(row.at_half(lambda r: r.seconds_to_half)),
        _figure(row.mean(lambda r: r.seconds)),
        "" if long is None else f"{long.gain:+.2f}",
        "" if long is None else f"{100 * long.obedience:.1f}",
        str(len(row.runs)),
        setting_text(row.runs[0].setting),
    ]


def change(row: Row, of: Callable[[Result], float], base: Callable[[Result], float], digits: int) -> str:
    """Mean of a figure with its change from the base."""
    value = row.mean(of)
    return f"{value:.{digits}f} ({value - row.mean(base):+.{digits}f})"


def _figure(value: float | None) -> str:
    return "never" if value is None else f"{value:.0f}"


def sweep_line(row: Row) -> list[str]:
    """Cells of the settings that were tried of one method."""
    if not row.sweep:
        return [f"`{row.method}`", "0", *[""] * (len(SWEEP_HEAD) - 2)]
    gains = [r.gain for r in row.sweep]
    best = max(row.sweep, key=lambda r: (r.obeys, r.gain))
    figures = [f"{f(gains):+.2f}" for f in (max, statistics.median, min)]
    obey = sum(r.obeys for r in row.sweep)
    return [
        f"`{row.method}`",
        str(len(gains)),
        *figures,
        f"{obey} of {len(gains)}",
        setting_text(best.setting),
    ]


def setting_text(setting: Mapping[str, float]) -> str:
    """``beta 2000, learning_rate 0.001``."""
    return ", ".join(f"{k.rpartition('.')[2]} {v:g}" for k, v in sorted(setting.items()))


def draw(tables: Mapping[str, Sequence[Row]], file: Path) -> None:
    """Gain against change of obedience, a point for each method, a panel for each pipeline."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5 * len(tables), 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, found) in zip(
        figure.subplots(1, len(tables), squeeze=False)[0], tables.items(), strict=True
    ):
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
