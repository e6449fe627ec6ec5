"""What ``diffalign score --output`` and ``--compare`` do, with a progress bar."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from diffalign.label.compare import compare_folders
from diffalign.label.judges import fetch_weights, load_judges, own_device, refuse_unknown
from diffalign.label.many import Progress as Report
from diffalign.label.many import Share, score_many, spawn
from diffalign.label.paths import path_of
from diffalign.label.pictures import pictures


def score_to_file(
    paths: Sequence[str],
    specs: Sequence[str],
    prompt: str | None,
    output: Path,
    *,
    processes: int = 1,
    batch: int = 32,
    workers: int = 4,
    allow_hub: bool = False,
) -> str:
    """Score files, folders, parquet tables and webdataset shards into one file; see ``label.many``.

    Args:
        paths: what holds the pictures.
        specs: scorers, ``name=weights?option=value`` or the address of a reward server.
        prompt: of all pictures; None takes what stands beside each.
        output: ``.jsonl`` or ``.parquet`` file that does not exist.
        processes: start so many of this command, which share the work.
        batch: pictures that go through a scorer at once.
        workers: threads that read ahead.
        allow_hub: download weights that are not here, where they are published.

    Returns:
        A line that says what was done.

    Raises:
        FileExistsError: the output exists.
        ChildProcessError: one of several processes failed.
    """
    refuse_unknown(specs)
    if processes > 1:
        if output.exists():
            raise FileExistsError(f"{output} exists and is not overwritten: name another --output")
        arguments = [*paths, *(part for spec in specs for part in ("--scorer", spec))]
        arguments += ["--prompt", prompt] if prompt is not None else []
        if allow_hub:
            fetch_weights(specs)  # once, before many want them
            arguments.append("--allow-hub")
        spawn(
            processes,
            ["score", *arguments, "--output", str(output), "--batch", str(batch), "--workers", str(workers)],
        )
        return f"{output}: done by {processes} processes"
    share = Share.of_environment()
    items = pictures([path_of(p) for p in paths], prompt)
    judges = load_judges(specs, own_device(share.rank), allow_hub=allow_hub)
    with _bar(share.rank == 0) as report:
        found = score_many(items, judges, output, batch=batch, workers=workers, share=share, progress=report)
    return found.line()


def compare_paths(
    paths: Sequence[str],
    specs: Sequence[str],
    prompt: str | None,
    *,
    batch: int = 32,
    workers: int = 4,
    allow_hub: bool = False,
) -> list[str]:
    """A line per scorer: win rate, with interval, of the second folder over the first.

    Raises:
        ValueError: not two folders; or see ``label.compare.compare_folders``.
    """
    if len(paths) != 2:
        raise ValueError(f"--compare needs two folders, the base first, got {len(paths)}")
    base, model = (path_of(p) for p in paths)
    judges = load_judges(specs, own_device(), allow_hub=allow_hub)
    with _bar(True) as report:
        found = compare_folders(base, model, judges, prompt, batch=batch, workers=workers, progress=report)
    return [verdict.line(base, model) for verdict in found]


@contextmanager
def _bar(shown: bool) -> Iterator[Report]:
    """A progress bar on stderr, with pictures per second."""
    with Progress(
        *Progress.get_default_columns(), console=Console(file=sys.stderr), transient=True, disable=not shown
    ) as bar:
        task = bar.add_task("images", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
