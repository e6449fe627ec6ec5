"""The work of an evaluation, in one process or several: pictures first, then what is measured on them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import Progress

from diffalign.evaluate.draw import draw
from diffalign.evaluate.measure import Progress as Advance
from diffalign.evaluate.measure import measure_all
from diffalign.evaluate.report import write_atomic
from diffalign.evaluate.request import REQUEST, Request
from diffalign.evaluate.studies import run_studies
from diffalign.label.many import Share


def work(request: Request, processes: int, lock: IO[str]) -> None:
    """Make and measure all pictures.

    Args:
        request: what is asked.
        processes: 1 works here; more start so many, to which the prompts are dealt by their hash.
        lock: file of ``claimed``, which they hold too, so that none is left behind unnoticed.

    Raises:
        ChildProcessError: a process failed; its message is above.
    """
    if processes == 1:
        work_share(request, Share())
        return
    file = write_atomic(request.output / REQUEST, request.to_json())
    running = [_start(file, rank, processes, lock) for rank in range(processes)]
    try:
        codes = [process.wait() for process in running]
    finally:
        for process in running:
            process.terminate()
    file.unlink()
    if any(codes):
        raise ChildProcessError(
            f"{sum(map(bool, codes))} of {processes} processes failed, with their messages above; what is "
            "done is kept: give the same command again"
        )


def _start(file: Path, rank: int, world: int, lock: IO[str]) -> subprocess.Popen[bytes]:
    threads = str(max(1, (os.cpu_count() or 1) // world))
    environment = {"OMP_NUM_THREADS": threads} | os.environ | {"RANK": str(rank), "WORLD_SIZE": str(world)}
    command = [sys.executable, "-c", "from diffalign.evaluate.work import main; main()", str(file)]
    return subprocess.Popen(command, env=environment, pass_fds=(lock.fileno(),))


def work_share(request: Request, share: Share) -> None:
    """Do one process's part, with progress bars on the first."""
    mine = sum(len(batch) for batch in request.batches[share.rank :: share.world])
    pictures = mine * request.seeds * len(request.models)
    extra = len(request.scorers) + len(request.trained_on) + len(request.sets) + 2
    with _bar("pictures", pictures, share) as advance:
        draw(request, share, advance)
    with _bar("measuring", mine * len(request.models) * extra, share) as advance:
        measure_all(request, share, advance)
    run_studies(request, share)


@contextmanager
def _bar(what: str, total: int, share: Share) -> Iterator[Advance]:
    console = Console(file=sys.stderr)
    with Progress(console=console, transient=True, disable=share.rank > 0) as bar:
        task = bar.add_task(what, total=total)
        yield lambda n: bar.advance(task, n)


def main() -> None:
    """Entry of the processes that ``work`` starts."""
    from diffalign.cli import one_clear_line, set_up_logging

    set_up_logging()
    with one_clear_line():
        work_share(Request.of_json(Path(sys.argv[1]).read_text("utf-8")), Share.of_environment())
