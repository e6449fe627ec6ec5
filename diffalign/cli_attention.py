"""The command that measures attention; ``cli`` registers it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(bench_app: typer.Typer) -> None:
    """Add ``bench attention``."""
    bench_app.command("attention")(bench_attention)


def bench_attention(
    into: Annotated[
        Path | None, typer.Option(help="also put the table between the two marks of this file (needs a GPU)")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="timings of each pass; the median counts")] = 20,
) -> None:
    """Time decoupled attention to text and users: fused, eager and compiled, beside the speed of a copy.

    Example: diffalign bench attention --into docs/attention.md
    """
    from diffalign.attention.bench import bench
    from diffalign.cli import one_clear_line

    with one_clear_line():
        for line in bench(into, repeats):
            typer.echo(line)
