"""Files of an evaluation: results.jsonl, report.json, report.md, plots and the gallery."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from diffalign.evaluate.markdown import markdown_report, show_details
from diffalign.evaluate.plots import write_plots
from diffalign.evaluate.prompts import write_tasks
from diffalign.evaluate.report import Report, show_report, write_atomic, write_report
from diffalign.evaluate.request import Request
from diffalign.evaluate.results import write_rows
from diffalign.evaluate.summary import Judged
from diffalign.evaluate.table import rows_of

WIDE = 116
"""Columns that the table of a report takes."""


def write_all(request: Request, judged: Judged, report: Report, console: Console) -> None:
    """Write everything, and show the report."""
    write_tasks(request.output / "geneval.jsonl", request.prompts)
    write_rows(request.output, rows_of(request, judged.table))
    write_report(request.output / "report.json", report)
    plots = write_plots(judged, report, request.output / "plots")
    write_atomic(request.output / "report.md", markdown_report(report, [p.name for p in plots]))
    wide = console if console.width >= WIDE else Console(width=WIDE)
    show_report(report, wide)
    show_details(report, wide)
    gallery = write_gallery(request.output, report)
    for file in ("report.json", "report.md", gallery.name):
        console.print(f"{request.output / file}", highlight=False, markup=False)


def write_gallery(output: Path, report: Report) -> Path:
    """Write the gallery of a folder of results."""
    from diffalign.gallery.write import write_gallery_of

    return write_gallery_of(
        [output], output / "gallery.html", report=report, title=output.name, overwrite=True
    )
