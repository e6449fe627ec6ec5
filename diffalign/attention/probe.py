"""Which backend is the fastest at a shape: measured once, remembered by device, torch and shape."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from diffalign.attention.backends import attention

REPEATS = 5
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """An attention whose time matters."""

    q: tuple[int, ...]
    """(B, N, H, D)."""
    keys: int
    dtype: str
    """As ``str(tensor.dtype)``."""
    device: str
    """As ``str(tensor.device)``."""
    backward: bool

    def describe(self) -> str:
        """Sizes in words."""
        b, n, h, d = self.q
        passes = "forward and backward" if self.backward else "forward"
        return f"batch {b}, {n} queries, {self.keys} keys, {h} heads of {d}, {self.dtype}, {passes}"

    def key(self) -> str:
        """Name in the file of measurements: also another torch or another GPU makes another name."""
        return f"{torch.cuda.get_device_name(self.device)}; torch {torch.__version__}; {self.describe()}"


def cache_file() -> Path:
    """Where choices are remembered: ``$XDG_CACHE_HOME`` or ``~/.cache``, then diffalign/attention.json."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "diffalign" / "attention.json"


def fastest(problem: Problem, candidates: Sequence[str]) -> str:
    """Name of the candidate that takes the least time; "sdpa" where none of them runs.

    Raises:
        ValueError: the file of earlier measurements is damaged; the message names it.
    """
    file = cache_file()
    known = remembered(file).get(problem.key())
    if known in (*candidates, "sdpa"):
        return known
    times = {name: milliseconds(name, problem) for name in candidates}
    ran = {name: t for name, t in times.items() if t is not None}
    name = min(ran, key=lambda n: ran[n]) if ran else "sdpa"
    remember(file, problem.key(), name)
    return name


def milliseconds(name: str, problem: Problem) -> float | None:
    """Median time of a call, or None where the backend refuses the problem."""
    dtype = getattr(torch, problem.dtype.removeprefix("torch."))
    b, n, h, d = problem.q
    q = torch.randn(b, n, h, d, device=problem.device, dtype=dtype, requires_grad=problem.backward)
    k, v = (
        torch.randn(b, problem.keys, h, d, device=problem.device, dtype=dtype, requires_grad=problem.backward)
        for _ in range(2)
    )

    def call() -> None:
        with torch.set_grad_enabled(problem.backward):
            out = attention(q, k, v, name=name)
        if problem.backward:
            torch.autograd.grad(out, (q, k, v), torch.ones_like(out))

    try:
        call()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        log.debug("%s at %s: %s", name, problem.describe(), error)
        return None
    return median(timed(call, q) for _ in range(REPEATS))


def timed(call: Callable[[], None], on: Tensor) -> float:
    """Milliseconds of a call on the GPU of this tensor."""
    with torch.cuda.device_of(on):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))


def remembered(file: Path) -> dict[str, str]:
    """Earlier choices by the problem's key; none where there is no file.

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
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as part:
            part.write(text + "\n")
        Path(part.name).replace(file)
    except OSError as error:
        log.warning("the fastest attention backend is not remembered: %s", error)
