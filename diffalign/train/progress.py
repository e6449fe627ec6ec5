"""What a person sees of a run: lines, progress bars with pairs/s and time left; silent on other processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

Advance = Callable[[int], None]

WIDE = 116
"""Columns that the table of a report takes."""


class Screen:
    """Rich output of one run."""

    def __init__(
        self, shown: bool, steps: int, batch: int, every: int, console: Console | None = None
    ) -> None:
        """``shown`` is False on all but the main process."""
        self.shown, self.steps, self.batch, self.every = shown, steps, batch, max(1, every)
        self.console = console or Console(stderr=True)
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def say(self, text: str) -> None:
        """Print one line."""
        if self.shown:
            self.console.print(text, highlight=False, markup=False)

    def wide(self) -> Console:
        """A console on which the table of a report fits: narrower ones would cut its figures."""
        if self.console.width >= WIDE:
            return self.console
        return Console(stderr=True, width=WIDE)

    @contextmanager
    def task(self, what: str, total: int) -> Iterator[Advance]:
        """Progress bar of ``total`` things; yields a function that advances it."""
        with _bars(self.console, not self.shown, "{task.fields[rate]}") as bars:
            task = bars.add_task(what, total=total, rate="")
            yield lambda n: bars.advance(task, n)

    @contextmanager
    def encoding(self) -> Iterator[Callable[[str, int, int], None]]:
        """Progress bars of the cache, one per kind of thing; yields its callback (what, done, total)."""
        with _bars(self.console, not self.shown, "") as bars:
            tasks: dict[str, TaskID] = {}

            def show(what: str, done: int, total: int) -> None:
                if what not in tasks:
                    tasks[what] = bars.add_task(f"encoding {what}", total=total)
                bars.update(tasks[what], completed=done, total=total)

            yield show

    @contextmanager
    def training(self, start: int) -> Iterator[None]:
        """Progress bar of the training loop, which ``on_step`` moves."""
        with _bars(self.console, not self.shown, "{task.fields[rate]}") as bars:
            self._progress = bars
            self._task = bars.add_task("training", total=self.steps, completed=start, rate="")
            try:
                yield
            finally:
                self._progress = self._task = None

    def on_step(self, step: int, row: dict[str, float]) -> None:
        """Move the bar; every few steps show loss, accuracy and speed."""
        if self._progress is None or self._task is None:
            return
        self._progress.update(self._task, completed=step)
        if step % self.every and step != self.steps:
            return
        speed = self._progress.tasks[0].speed or 0.0
        shown = [f"{k} {row[k]:.3f}" for k in ("loss", "accuracy") if k in row]
        self._progress.update(self._task, rate=", ".join([*shown, f"{speed * self.batch:.0f} units/s"]))


def _bars(console: Console, hidden: bool, last: str) -> Progress:
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    return Progress(*columns, TextColumn(last), console=console, disable=hidden)
