"""``diffalign bench attention``: decoupled attention fused, eager and compiled, beside a plain copy."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from diffalign.attention.measured import form, tensors
from diffalign.attention.probe import timed
from diffalign.attention.sizes import Sizes
from diffalign.evaluate.report import write_atomic

COLUMNS = (
    "shape",
    "form",
    "forward ms",
    "GB/s",
    "of copy",
    "backward ms",
    "GB/s",
    "of copy",
    "peak MiB",
    "times eager: forward",
    "backward",
)
BEGIN, END = "<!-- bench attention: begin -->", "<!-- bench attention: end -->"
FLUSH_BYTES = 256 * 2**20
"""Written before each timing, so that no form finds its tensors in the cache of the GPU."""


def _sizes(batch: int, queries: int, heads: int, width: int, text: int = 77) -> Sizes:
    return Sizes(
        batch=batch,
        queries=queries,
        heads=heads,
        width=width,
        text=text,
        user=16,
        segments=1,
        text_group=2,
        user_group=2,
    )


def shapes() -> dict[str, Sizes]:
    """Name and sizes of what is measured: pairs share text and user keys; text 0 is the form that adds."""
    return {
        "SD1.5 N=4096 B=2": _sizes(2, 4096, 8, 40),
        "SD1.5 N=4096 B=16": _sizes(16, 4096, 8, 40),
        "SD1.5 N=1024 B=4": _sizes(4, 1024, 8, 80),
        "SD1.5 N=256 B=4": _sizes(4, 256, 8, 160),
        "SDXL N=4096 B=2": _sizes(2, 4096, 10, 64),
        "SDXL N=4096 B=16": _sizes(16, 4096, 10, 64),
        "SDXL N=1024 B=4": _sizes(4, 1024, 20, 64),
        "PixArt N=4096 L=300 B=4": _sizes(4, 4096, 16, 72, text=300),
        "SD3 adds N=4096 B=2": _sizes(2, 4096, 24, 64, text=0),
        "FLUX adds N=4096 B=2": _sizes(2, 4096, 24, 128, text=0),
    }


def small(whole: Mapping[str, Sizes]) -> dict[str, Sizes]:
    """The shapes with a batch of 2, each once: what a CPU can bear."""
    return {name.split(" B=")[0] + " B=2": replace(sizes, batch=2) for name, sizes in whole.items()}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one form costs."""

    forward: float
    """Seconds."""
    backward: float
    """Seconds."""
    peak: int | None
    """Bytes above what the arguments take, over a forward and a backward pass; None where unknown."""


def bench(into: Path | None, repeats: int) -> Iterator[str]:
    """Yield lines: where, then a table; it is also written between the two marks of the file ``into``.

    Rates divide the bytes that any form must move (``bytes_moved``) by the time, so that forms compare.

    Raises:
        ValueError: ``into`` without a GPU, or a file without the marks.
    """
    gpu = torch.cuda.is_available()
    if into is not None:
        _check_file(into, gpu)
    device = torch.device("cuda" if gpu else "cpu")
    copy = copy_rate(device)
    head = [
        headline(device, copy),
        "",
        *([] if gpu else [NO_GPU, ""]),
        _row(COLUMNS),
        "|---" * len(COLUMNS) + "|",
    ]
    yield from head
    rows, slower = [], []
    for name, sizes in (shapes() if gpu else small(shapes())).items():
        costs = measure(sizes, device, repeats)
        for row in _rows(name, sizes, costs, copy, device):
            rows.append(row)
            yield row
        slower += [name] if _slower(costs) else []
    yield ""
    if gpu:
        yield f"fused is slower than eager at: {', '.join(slower) or 'no shape'}"
    if into is not None:
        _write(into, [*head, *rows])


NO_GPU = (
    "No GPU here: only the eager twin runs, in fp32 with a batch of 2. These are no figures of the kernels."
)


def headline(device: torch.device, copy: float) -> str:
    """Device, torch, date and copy rate."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    today = datetime.datetime.now(tz=datetime.UTC).date()
    return (
        f"{name}, torch {torch.__version__}, {today}; a copy moves {copy / 1e9:.3g} GB/s (read and written)"
    )


def dtype_on(device: torch.device) -> torch.dtype:
    """What is measured in."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def bytes_moved(sizes: Sizes, element: int) -> tuple[int, int]:
    """Least bytes of a forward and of a backward pass, with elements of so many bytes.

    Forward: Q is read and the output written, and a base read; keys and values once. Backward: Q and dO are
    read and dQ written (and the output is read, for the row sums); keys and values read, gradients written.
    """
    x = sizes.batch * sizes.queries * sizes.heads * sizes.width * element
    rows = sizes.text * (sizes.batch // sizes.text_group) + sizes.user * (sizes.batch // sizes.user_group)
    keys = 2 * rows * sizes.heads * sizes.width * element
    return (2 if sizes.text else 3) * x + keys, (4 if sizes.text else 3) * x + 2 * keys


def copy_rate(device: torch.device) -> float:
    """Bytes read and written in a second by a copy of a large tensor."""
    size = 2**30 if device.type == "cuda" else 2**26
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _median_seconds(lambda: target.copy_(source), device, 5)


def measure(sizes: Sizes, device: torch.device, repeats: int) -> Mapping[str, Cost]:
    """Cost of each form that runs on this device."""
    x = tensors(sizes, dtype_on(device), device)
    base = None if sizes.text else torch.randn_like(x[0])
    eager = form("eager", sizes, base)
    forms = {"eager": eager}
    if device.type == "cuda":
        forms = {"fused": form("fused", sizes, base), "eager": eager, "compiled": torch.compile(eager)}
    return {name: _cost(function, x, device, repeats) for name, function in forms.items()}


def _cost(function: Callable[..., Tensor], x: list[Tensor], device: torch.device, repeats: int) -> Cost:
    leaves = [t for t in x if t.numel()]
    grad = torch.ones_like(x[0])
    forward = _median_seconds(lambda: function(*x), device, repeats)
    backward = _backward_seconds(function(*x), leaves, grad, device, repeats)
    return Cost(forward=forward, backward=backward, peak=_peak(function, x, leaves, grad, device))


def _backward_seconds(
    out: Tensor, leaves: list[Tensor], grad: Tensor, device: torch.device, repeats: int
) -> float:
    return _median_seconds(lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True), device, repeats)


def _peak(
    function: Callable[..., Tensor], x: list[Tensor], leaves: list[Tensor], grad: Tensor, device: torch.device
) -> int | None:
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    torch.autograd.grad(function(*x), leaves, grad)
    return torch.cuda.max_memory_allocated(device) - before


def _median_seconds(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median time of a call after one for warming up, each time with a cold cache on a GPU."""
    call()
    if device.type != "cuda":
        return median(_clocked(call) for _ in range(repeats))
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)

    def once() -> float:
        flush.zero_()
        return timed(lambda: _discard(call()), device) / 1000

    return median(once() for _ in range(repeats))


def _discard(_: object) -> None:
    """Drop a result."""


def _clocked(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _rows(
    name: str, sizes: Sizes, costs: Mapping[str, Cost], copy: float, device: torch.device
) -> Iterator[str]:
    forward, backward = bytes_moved(sizes, dtype_on(device).itemsize)
    eager = costs["eager"]
    for which, cost in costs.items():
        rates = [forward / cost.forward, backward / cost.backward]
        yield _row(
            (
                name,
                which,
                f"{cost.forward * 1e3:.4g}",
                f"{rates[0] / 1e9:.3g}",
                f"{rates[0] / copy:.0%}",
                f"{cost.backward * 1e3:.4g}",
                f"{rates[1] / 1e9:.3g}",
                f"{rates[1] / copy:.0%}",
                "" if cost.peak is None else f"{cost.peak / 2**20:.0f}",
                f"{eager.forward / cost.forward:.2f}",
                f"{eager.backward / cost.backward:.2f}",
            )
        )


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"


def _slower(costs: Mapping[str, Cost]) -> bool:
    fused, eager = costs.get("fused"), costs["eager"]
    return fused is not None and (fused.forward > eager.forward or fused.backward > eager.backward)


def _check_file(file: Path, gpu: bool) -> None:
    if not gpu:
        raise ValueError(f"{file} is for figures of a GPU, and torch sees none; leave --into out")
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(
            f"{file} must have the lines {BEGIN!r} and {END!r}, once each; add them where the table goes"
        )


def _write(file: Path, lines: list[str]) -> None:
    """Put the lines between the marks; the rest of the file stays."""
    before, rest = file.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    table = "\n".join(lines)
    write_atomic(file, f"{before}{BEGIN}\n{table}\n{END}{after}")
