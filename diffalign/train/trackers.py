"""Further places for metrics: tensorboard and wandb, through accelerate's trackers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from diffalign.train.run import RunFolder


def check_trackers(names: Sequence[str]) -> None:
    """Look whether trackers can be opened.

    Raises:
        ModuleNotFoundError: a tracker's package is not installed.
    """
    for name in names:
        if find_spec(name) is None:
            raise ModuleNotFoundError(
                f"log.trackers names {name}, which is not installed: pip install 'diffalign[trackers]'"
            )


class Trackers:
    """The trackers that a recipe asks for; none by default."""

    def __init__(self, names: Sequence[str], run: RunFolder) -> None:
        """Open them, in the run's folder where they write files.

        Raises:
            ModuleNotFoundError: a tracker's package is not installed.
        """
        check_trackers(names)
        self._open = [_tracker(name, run) for name in names]

    def log(self, step: int, row: dict[str, float]) -> None:
        """Send one step's figures; those that are not numbers are left out."""
        plain = {k: v for k, v in row.items() if math.isfinite(v)}
        for tracker in self._open:
            tracker.log(plain, step=step)

    def close(self) -> None:
        """Finish writing."""
        for tracker in self._open:
            tracker.finish()


def _tracker(name: str, run: RunFolder) -> Any:
    from accelerate.tracking import TensorBoardTracker, WandBTracker

    if name == "tensorboard":
        tracker = TensorBoardTracker(run.root.name, logging_dir=str(run.root / "tensorboard"))
    else:
        tracker = WandBTracker(run.root.name, dir=str(run.root))
    if hasattr(tracker, "start"):
        tracker.start()
    return tracker
