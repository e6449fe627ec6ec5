"""Looks at an installation: versions, devices, attention backends, and what is wrong with them."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module, metadata
from pathlib import Path

from rich.console import Group
from rich.table import Table

REQUIRED: Mapping[str, tuple[str, str | None]] = {
    "torch": ("2.11", None),
    "torchvision": ("0.26", None),
    "diffusers": ("0.42", "0.43"),
    "transformers": ("5.23", "6"),
    "accelerate": ("1.15", "2"),
    "peft": ("0.21", "1"),
    "open_clip_torch": ("3.3", "4"),
    "safetensors": ("0.5", None),
}
"""Lowest version, and the first one that is too new, of each package that nothing works without."""
OPTIONAL = ("xformers", "bitsandbytes")
PYTHON = (3, 11)
COMPLAINT = re.compile(r"^(?!\s)([\w.]*(Error|Exception)\b|.*can(no|')t load)")
"""A line by which a failed import, or a package that only logs what it lacks, says why."""
LOAD_S = 120.0
REINSTALL = (
    "pip uninstall -y torch torchvision, then pip install torch torchvision"
    " (both together, plainly from the package index: that build runs on CPU machines too)"
)


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What was found; nothing in here is judged yet."""

    python: str
    packages: Mapping[str, str | None]
    """Installed version of each package, None where it is missing."""
    broken: Mapping[str, str] = field(default_factory=dict)
    """The error of each package that is there but cannot be imported; of optional ones: for attention."""
    devices: tuple[str, ...] = ("cpu",)
    """What torch can compute on."""
    nvidia_driver: bool = False
    """Whether the machine has an NVIDIA driver, whatever torch makes of it."""
    attention: Mapping[str, str | None] = field(default_factory=dict)
    """Why an attention backend, or the fused form for users, cannot train on the first device; None: can."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One fault of an installation."""

    what: str
    remedy: str


def inspect() -> Findings:
    """Look at this installation. Imports torch and torchvision only; optional packages for attention are
    tried in processes of their own.
    """
    packages = {name: _version(name) for name in (*REQUIRED, *OPTIONAL)}
    errors = {name: _import_error(name) for name in ("torch", "torchvision") if packages[name]}
    broken = {name: error for name, error in errors.items() if error}
    usable = packages["torch"] is not None and "torch" not in broken
    devices = _devices() if usable else ("cpu",)
    optional = broken_backends() if usable else {}
    return Findings(
        python=platform.python_version(),
        packages=packages,
        broken=broken | optional,
        devices=devices,
        nvidia_driver=Path("/proc/driver/nvidia/version").exists(),
        attention=_attention(devices[0].split()[0], optional) if usable else {},
    )


def problems(findings: Findings) -> list[Problem]:
    """What is wrong, with the remedy, the most basic fault first."""
    found = _python_problems(findings) + _torchvision_problems(findings)
    for name, (lowest, too_new) in REQUIRED.items():
        found += _version_problems(name, findings.packages.get(name), lowest, too_new)
    if "torch" in findings.broken:
        found.append(Problem(what=f"torch cannot be imported: {findings.broken['torch']}", remedy=REINSTALL))
    if findings.nvidia_driver and findings.devices == ("cpu",):
        what = f"this machine has an NVIDIA driver but torch {findings.packages.get('torch')} sees no GPU"
        remedy = "if torch is a CPU-only build: " + REINSTALL + "; else check that nvidia-smi works"
        found.append(Problem(what=what, remedy=remedy))
    return found + _optional_problems(findings)


def broken_backends() -> dict[str, str]:
    """Optional packages for attention that are installed and do not load, each with the reason."""
    from diffalign.attention.backends import backend, names

    modules = {b.wheel: b.module for b in map(backend, names()[1:]) if b.wheel and _version(b.wheel)}
    found = {wheel: load_error(module) for wheel, module in modules.items()}
    return {wheel: reason for wheel, reason in found.items() if reason}


def load_error(module: str) -> str | None:
    """Why a module does not load, in a process of its own, as it may crash; None when it does.

    Where xformers does not find its libraries it is imported all the same and logs the error: that counts.
    """
    path = os.pathsep.join(p or str(Path.cwd()) for p in sys.path)
    try:
        done = subprocess.run(
            [sys.executable, "-c", f"import {module}"], capture_output=True, text=True, errors="replace",
            timeout=LOAD_S, check=False, env={**os.environ, "PYTHONPATH": path, "XFORMERS_MORE_DETAILS": "1"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"its import takes more than {LOAD_S:.0f} s"
    said = [line for line in done.stderr.splitlines() if COMPLAINT.match(line)]
    if not said:
        return f"its import ends with code {done.returncode}" if done.returncode else None
    return said[-1] if said[0] == said[-1] else f"{said[-1]} ({said[0]})"


def render(findings: Findings) -> Group:
    """The findings as a table, and below it the problems with their remedies."""
    table = Table(title="diffalign doctor", show_header=False)
    table.add_row("python", findings.python)
    for name, version in findings.packages.items():
        missing = "not installed (optional)" if name in OPTIONAL else "[red]missing[/red]"
        broken = " [red]broken[/red]" if name in findings.broken else ""
        table.add_row(name, f"{version}{broken}" if version else missing)
    table.add_row("devices", "\n".join(findings.devices))
    for name, reason in findings.attention.items():
        table.add_row(f"attention {name}", f"no: {reason}" if reason else "yes")
    lines = [f"[red]problem[/red] {p.what}\n  [green]remedy[/green] {p.remedy}" for p in problems(findings)]
    return Group(table, *(lines or ["No problems found."]))


def _python_problems(findings: Findings) -> list[Problem]:
    if _number(findings.python) >= PYTHON:
        return []
    wanted = ".".join(map(str, PYTHON))
    remedy = f"install Python {wanted} or newer and make a new virtual environment with it"
    return [Problem(what=f"Python is {findings.python}; {wanted} is the oldest that works", remedy=remedy)]


def _torchvision_problems(findings: Findings) -> list[Problem]:
    """Torchvision that does not fit torch takes transformers and open_clip down with it."""
    error = findings.broken.get("torchvision")
    if error is None or "torch" in findings.broken or findings.packages.get("torch") is None:
        return []
    torch, vision = findings.packages["torch"], findings.packages["torchvision"]
    cpu_only = " (a CPU-only build)" if "+cpu" in (torch or "") else ""
    what = f"torch {torch}{cpu_only} and torchvision {vision} do not fit: {error}"
    return [Problem(what=f"{what}; transformers and open_clip break with it", remedy=REINSTALL)]


def _optional_problems(findings: Findings) -> list[Problem]:
    """Optional packages are better absent than broken: diffusers imports what it finds."""
    torch = findings.packages.get("torch")
    return [
        Problem(
            what=f"{name} is installed and broken: {error}",
            remedy=f"pip uninstall {name} (nothing needs it: torch's own attention is used), or install the "
            f"build of it that is for torch {torch}",
        )
        for name, error in findings.broken.items()
        if name not in REQUIRED
    ]


def _version_problems(name: str, version: str | None, lowest: str, too_new: str | None) -> list[Problem]:
    asked = f"{name}>={lowest}" + (f",<{too_new}" if too_new else "")
    remedy = f"pip install -U '{asked}'"
    if version is None:
        return [Problem(what=f"{name} is not installed", remedy=remedy)]
    if _number(version) < _number(lowest):
        return [Problem(what=f"{name} is {version}; {lowest} is the oldest that works", remedy=remedy)]
    if too_new and _number(version) >= _number(too_new):
        what = f"{name} is {version}; diffalign is tested below {too_new} only"
        return [Problem(what=what, remedy=remedy)]
    return []


def _number(version: str) -> tuple[int, ...]:
    """Release numbers of a version, for comparisons: ``2.11.0+cpu`` is (2, 11, 0)."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _import_error(name: str) -> str | None:
    """First line of what importing the package raises; compiled packages fail in every way there is."""
    try:
        import_module(name)
    except Exception as error:
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return None


def _devices() -> tuple[str, ...]:
    import torch

    cuda = []
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(i)
        cuda.append(f"cuda:{i} {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return (*cuda, *mps, "cpu")


def _attention(device: str, broken: Mapping[str, str]) -> dict[str, str | None]:
    """Try torch's own kernels on tiny bf16 tensors; of the others, say which are absent or ``broken``."""
    import torch

    from diffalign.attention.backends import backend, names, why_not
    from diffalign.attention.decoupled import why_not_on

    on = torch.device(device)
    lost = {
        b.name: f"{b.wheel} is broken: {broken[b.wheel]}"
        for b in map(backend, names()[1:])
        if b.wheel in broken
    }
    found = {name: lost.get(name) or why_not(name, on) or _refusal(name, device) for name in names()}
    return found | {"fused for users": why_not_on(on.type, on.index)}


def _refusal(name: str, device: str) -> str | None:
    """Why a kernel of torch refuses tiny bf16 tensors, forward or backward."""
    import torch

    from diffalign.attention.backends import attention

    if not name.startswith("sdpa_"):
        return None
    x = torch.ones(1, 16, 1, 64, device=device, dtype=torch.bfloat16, requires_grad=True)
    with warnings.catch_warnings():  # torch warns of every reason against a kernel
        warnings.simplefilter("ignore")
        try:
            attention(x, x, x, name=name).sum().backward()
        except RuntimeError as error:
            return str(error).splitlines()[0]
    return None
