"""Which of several calls is the fastest on a GPU: measured once, remembered by device, torch and problem."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import torch

from diffalign.evaluate.report import write_atomic

REPEATS = 5
log = logging.getLogger(__name__)


def cache_file() -> Path:
    """Where choices are remembered: ``$XDG_CACHE_HOME`` or ``~/.cache``, then diffalign/attention.json."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "diffalign" / "attention.json"


def fastest(
    problem: str, calls: Mapping[str, Callable[[], None]], default: str, device: torch.device | str
) -> str:
    """Name of the call that takes the least time; the default where every call is refused (RuntimeError).

    problem describes the sizes in words. A choice made before for it, on such a GPU with this torch, stands.

    Raises:
        ValueError: the file of earlier choices is damaged; the message names it.
    """
    file, key = cache_file(), f"{torch.cuda.get_device_name(device)}; torch {torch.__version__}; {problem}"
    known = remembered(file).get(key)
    if known in (*calls, default):
        return known
    times = {name: milliseconds(name, call, device) for name, call in calls.items()}
    ran = {name: t for name, t in times.items() if t is not None}
    name = min(ran, key=lambda n: ran[n]) if ran else default
    log.info("attention, %s: %s is the fastest of %s", problem, name, times)
    remember(file, key, name)
    return name


def milliseconds(name: str, call: Callable[[], None], device: torch.device | str) -> float | None:
    """Median time of a call, or None where it is refused. The first call compiles and does not count."""
    try:
        call()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        log.debug("%s: %s", name, error)
        return None
    return median(timed(call, device) for _ in range(REPEATS))


def timed(call: Callable[[], None], device: torch.device | str) -> float:
    """Milliseconds of a call on a GPU."""
    with torch.cuda.device(device):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))


def remembered(file: Path) -> dict[str, str]:
    """Earlier choices; none where there is no file.

    Raises:
        ValueError: the file is no table of names.
    """
    if not file.exists():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}); delete it, it is measured anew") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} is no table; delete it, it is measured anew")
    return found


def remember(file: Path, key: str, name: str) -> None:
    """Add a choice. A folder that cannot be written costs a measurement next time, and a line in the log."""
    text = json.dumps(remembered(file) | {key: name}, indent=1, sort_keys=True)
    try:
        write_atomic(file, text + "\n")
    except OSError as error:
        log.warning("the fastest attention is not remembered: %s", error)
