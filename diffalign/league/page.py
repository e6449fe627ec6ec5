"""docs/league.md, league.json and the picture of a league, and the same of a study."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from diffalign.league.config import League
from diffalign.league.picture import draw_curve, draw_scatter
from diffalign.league.picture_online import draw_online, learners
from diffalign.league.results import ENOUGH, MOST_LOST, Result, Row, rows
from diffalign.train.run import write_text

SWEEP_HEAD = (
    "method",
    "settings tried",
    "best gain",
    "median gain",
    "worst gain",
    "that obey",
    "best setting",
)
INTRO = """\
Every objective on the same pipeline, preferences and number of pictures seen, ranked by the mean gain of the
held-out judge in s.d. of the base, among those whose prompt obedience falls by at most {lost:.0f} points; the
others follow below the line. Settings were chosen on selection prompts, never on those reported here; every
method had the same number of tries, all of which are in the second table of each pipeline. Obedience and
diversity (Vendi score between the pictures of a prompt) are those of the model, with their change from the
base. Seconds are of training alone, on this machine, which had other work to do as well: the median of the
seeds. Rows without figures have not been run yet.
"""
WRITTEN = "\nWritten by `training/league.py` from {runs} runs (code {trees}).\n"


def write_page(league: League, results: Mapping[str, Result], folder: Path, stem: str = "league") -> None:
    """Write ``stem``.md and .json into ``folder``, and .png as soon as a row of the tables has figures.

    Raises:
        ValueError: the league asks for a column that there is not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tables = {name: rows(league, results, name) for name in league.pipelines}
    shown = learners(tables) if league.draw == "online" else tables
    played = any(row.runs for found in shown.values() for row in found)
    picture = [f"![figures]({stem}.png)\n"] if played and league.draw != "none" else []
    parts = [_opening(league, results), *picture]
    for name, found in tables.items():
        parts += [f"## {name}\n", table(_head(league), _lines(league, found)) + "\n"]
        if not league.parent:
            swept = [sweep_line(row) for row in found if row.exists]
            parts += [f"### Settings tried on {name}\n", table(SWEEP_HEAD, swept) + "\n"]
    write_text(folder / f"{stem}.md", "\n".join(parts))
    content = {"results": [asdict(r) for r in sorted(results.values(), key=lambda r: r.job)]}
    write_text(folder / f"{stem}.json", json.dumps(content, indent=1) + "\n")
    if picture and league.draw == "scatter":
        draw_scatter(tables, folder / f"{stem}.png")
    if picture and league.draw == "curve":
        draw_curve(tables, next(iter(league.vary)), folder / f"{stem}.png")
    if picture and league.draw == "online":
        draw_online(shown, league.families, folder / f"{stem}.png")


def _opening(league: League, results: Mapping[str, Result]) -> str:
    """Heading and text."""
    trees = ", ".join(sorted({r.tree for r in results.values()})) or "none"
    text = league.intro or INTRO.format(lost=100 * MOST_LOST)
    written = WRITTEN.format(runs=len(results), trees=trees)
    return f"# {league.title}\n\n{text.strip()}\n{written}"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))


def _head(league: League) -> list[str]:
    unknown = [c for c in league.columns if c not in COLUMNS]
    if unknown:
        raise ValueError(f"columns names {unknown[0]!r}; there are {', '.join(COLUMNS)}")
    return ["method", *(short(key) for key in league.vary), *(league.columns or LEAGUE_COLUMNS)]


def _lines(league: League, found: Sequence[Row]) -> list[list[str]]:
    """Lines of the table; a league has an empty one between methods that obey and those that do not."""
    lines = [(row, line(row, league.columns or LEAGUE_COLUMNS)) for row in found]
    if league.parent:
        return [cells for _, cells in lines]
    good = [cells for row, cells in lines if row.runs and row.obeys]
    bad = [cells for row, cells in lines if row.runs and not row.obeys]
    none = [cells for row, cells in lines if not row.runs]
    width = len(league.columns or LEAGUE_COLUMNS)
    ruler = [["*obedience falls by more*", *[""] * width]] if bad else []
    return [*good, *ruler, *bad, *none]


def line(row: Row, columns: Sequence[str]) -> list[str]:
    """Cells of one method, at one of a study's points."""
    name = f"**`{row.method}`**" if row.known and row.runs else f"`{row.method}`"
    start = [name, *(f"{value:g}" for value in row.point.values())]
    if not row.runs:
        said = "not run yet" if row.exists else "not for this pipeline"
        return [*start, said, *[""] * (len(columns) - 1)]
    return [*start, *(COLUMNS[column](row) for column in columns)]


def _reward(row: Row) -> str:
    """Trained reward at the start and at the end of the runs."""
    ends = [(r.reward_first, r.reward_last) for r in row.runs]
    first, last = ([v for v in side if v is not None] for side in zip(*ends, strict=True))
    return f"{statistics.fmean(first):.2f} to {statistics.fmean(last):.2f}" if first and last else ""


def _gain(row: Row) -> str:
    spread = f" ± {statistics.stdev(r.gain for r in row.runs):.2f}" if len(row.runs) > 1 else ""
    return f"{row.mean(lambda r: r.gain):+.2f}{spread}"


def _win_rate(row: Row) -> str:
    low, high = row.mean(lambda r: r.ci_low), row.mean(lambda r: r.ci_high)
    return f"{row.mean(lambda r: r.win_rate):.3f} [{low:.3f}, {high:.3f}]"


def _enough(row: Row) -> str:
    """Whether the mean win rate is as high as asked, and its interval too."""
    if row.mean(lambda r: r.win_rate) < ENOUGH - 1e-9:
        return "no"
    return "yes, all of its interval" if row.mean(lambda r: r.ci_low) >= ENOUGH - 1e-9 else "yes"


def _obedience(row: Row) -> str:
    return change(row, lambda r: 100 * r.obedience, lambda r: 100 * r.obedience_base, 1)


COLUMNS: dict[str, Callable[[Row], str]] = {
    "gain in s.d.": _gain,
    "win rate [95 %]": _win_rate,
    f"{ENOUGH} of wins": _enough,
    "obedience": _obedience,
    "diversity": lambda row: change(row, lambda r: r.diversity, lambda r: r.diversity_base, 2),
    "steps to 0.5 s.d.": lambda row: _figure(row.at_half(lambda r: r.steps_to_half)),
    "s to 0.5 s.d.": lambda row: _figure(row.at_half(lambda r: r.seconds_to_half)),
    "s a run": lambda row: _figure(row.median(lambda r: r.seconds)),
    "s a step": lambda row: f"{row.median(lambda r: r.seconds / r.steps):.3f}",
    "gain at 4x": lambda row: "" if row.long is None else f"{row.long.gain:+.2f}",
    "obedience at 4x": lambda row: "" if row.long is None else f"{100 * row.long.obedience:.1f}",
    "pictures": lambda row: _figure(row.mean(lambda r: r.pictures)),
    "trained reward": lambda row: _reward(row),
    "steps": lambda row: _figure(row.mean(lambda r: r.steps)),
    "seeds": lambda row: str(len(row.runs)),
    "setting": lambda row: setting_text({k: v for k, v in row.runs[0].setting.items() if k not in row.point}),
}
"""Columns of tables, by their headings."""
OTHERS = (f"{ENOUGH} of wins", "s a step", "steps", "pictures", "trained reward")
"""Columns that are only there where a file asks for them."""
LEAGUE_COLUMNS = tuple(name for name in COLUMNS if name not in OTHERS)


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
    return ", ".join(f"{short(k)} {v:g}" for k, v in sorted(setting.items()))


def short(key: str) -> str:
    """Last part of a dotted key."""
    return key.rpartition(".")[2]
