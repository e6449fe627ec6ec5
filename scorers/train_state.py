"""Resume state of a training run: one safetensors file, written beside and moved into place."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

NAME = "resume.safetensors"
REPORT = "accuracy.json"
"""What a finished run has beside its weights."""


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """Everything that a run needs to go on as if it had never stopped."""

    step: int
    weights: dict[str, Tensor]
    best: dict[str, Tensor]
    """Weights of the best validation so far."""
    optimizer: dict[str, Any]
    """``optimizer.state_dict()``."""
    report: dict[str, Any]
    """Numbers and texts that JSON holds: what was found so far, and a key of the run."""


def save_state(folder: Path, state: TrainState) -> None:
    """Write ``folder/resume.safetensors``; a run that dies while writing leaves the old one."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors, scalars = _flat(state.optimizer["state"])
    parts = {"weights": state.weights, "best": state.best, "optimizer": tensors}
    flat = {
        f"{part}/{name}": value.detach().cpu().clone().contiguous()
        for part, values in parts.items()
        for name, value in values.items()
    }
    meta = {
        "step": state.step, "report": state.report, "scalars": scalars,
        "groups": state.optimizer["param_groups"],
    }  # fmt: skip
    temporary = folder / f"{NAME}.{os.getpid()}.tmp"
    save_file(flat, temporary, metadata={"state": json.dumps(meta)})
    os.replace(temporary, folder / NAME)


def load_state(folder: Path) -> TrainState | None:
    """Read what ``save_state`` wrote; None where there is nothing.

    Raises:
        ValueError: the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    file = folder / NAME
    if not file.is_file():
        return None
    try:
        with safe_open(file, "pt") as opened:
            meta = json.loads((opened.metadata() or {})["state"])
            flat = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{file} is damaged ({error}); delete it to start again") from error
    parts: dict[str, dict[str, Tensor]] = {"weights": {}, "best": {}, "optimizer": {}}
    for name, value in flat.items():
        part, _, rest = name.partition("/")
        parts[part][rest] = value
    optimizer = {"state": _deep(parts["optimizer"], meta["scalars"]), "param_groups": meta["groups"]}
    return TrainState(
        step=meta["step"], weights=parts["weights"], best=parts["best"], optimizer=optimizer,
        report=meta["report"],
    )  # fmt: skip


def check_output(folder: Path) -> None:
    """See that a run may write into a folder: a new or empty one, or that of the same run, stopped.

    Raises:
        FileExistsError: it holds a finished scorer, or files of something else.
    """
    there = sorted(f.name for f in folder.iterdir()) if folder.is_dir() else []
    if REPORT in there:
        raise FileExistsError(
            f"{folder} holds a trained scorer ({REPORT}), which is not overwritten: name another folder "
            "(--out), or move this one away"
        )
    others = [name for name in there if not name.startswith((NAME, "."))]
    if others and NAME not in there:
        raise FileExistsError(
            f"{folder} holds {', '.join(others[:3])}, which is not overwritten: name a new folder (--out)"
        )


def forget_state(folder: Path) -> None:
    """Delete the resume state of a run that is done."""
    (folder / NAME).unlink(missing_ok=True)


def _flat(state: dict[int, dict[str, Any]]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    for number, entry in state.items():
        for name, value in entry.items():
            (tensors if isinstance(value, torch.Tensor) else scalars)[f"{number}/{name}"] = value
    return tensors, scalars


def _deep(tensors: dict[str, Tensor], scalars: dict[str, Any]) -> dict[int, dict[str, Any]]:
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **scalars}.items():
        number, _, name = key.partition("/")
        state.setdefault(int(number), {})[name] = value
    return state
