"""A report's details on the terminal and as report.md."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from diffalign.evaluate.details import Details
from diffalign.evaluate.grids import Grid, grids, lines
from diffalign.evaluate.report import Report, markdown_table


def show_details(report: Report, console: Console) -> None:
    """Print the tables of the details, and the rest as lines."""
    for grid in grids(report):
        table = Table(title=Text(grid.title), title_justify="left", box=None)
        for i, name in enumerate(grid.header):
            table.add_column(Text(name), justify="right" if i else "left")
        for row in grid.rows:
            table.add_row(*map(Text, row))  # Text, because a name with brackets would be read as markup
        console.print(table)
    for line in lines(report):
        console.print(line, highlight=False, markup=False)


def markdown_report(report: Report, plots: Sequence[str]) -> str:
    """report.md: the table of comparisons, the details, the plots, how it was made."""
    details = report.get("details", Details())
    parts = ["# Evaluation", markdown_table(report).strip()]
    parts += [_grid(grid) for grid in grids(report)]
    parts += [f"* {_escaped(line)}" for line in lines(report)]
    parts += [f"![{name}](plots/{name})" for name in plots]
    made = [f"* {key}: `{value}`" for key, value in details.get("settings", {}).items()]
    made += [f"* {key} {value}" for key, value in report["versions"].items()]
    return "\n\n".join([*parts, "## How it was made", "\n".join(made)]) + "\n"


def _grid(grid: Grid) -> str:
    rows = [grid.header, ("---",) * len(grid.header), *grid.rows]
    return f"## {_escaped(grid.title)}\n\n" + "\n".join(
        "| " + " | ".join(map(_escaped, row)) + " |" for row in rows
    )


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
