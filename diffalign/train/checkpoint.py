"""Checkpoints: everything a run needs to go on exactly, in one folder that appears whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffalign.train.shard import like

STATE, META = "state.safetensors", "state.json"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read."""


@dataclass(kw_only=True)
class Checkpoint:
    """All state of a run after ``step`` steps.

    ``tensors`` holds, by prefix, ``policy/``, ``ema/``, ``optim/``, ``objective/`` and ``rng/`` (by process);
    ``meta`` plain JSON values (loader position, scalar optimizer state, loss scaler, monitor, random states
    of Python and numpy by process, digest of the base's weights, resolved recipe).
    """

    step: int
    tensors: dict[str, Tensor]
    meta: dict[str, Any] = field(default_factory=dict)

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Tensors under ``prefix/``, without it."""
        return {
            k.removeprefix(f"{prefix}/"): v for k, v in self.tensors.items() if k.startswith(f"{prefix}/")
        }


def name_of(step: int) -> str:
    """Folder name of a step."""
    return f"step-{step:06d}"


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write ``folder/step-000123``: first beside it under another name, flushed to disk, then renamed.

    Raises:
        CheckpointError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    target, partial = folder / name_of(checkpoint.step), folder / f".{name_of(checkpoint.step)}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file({k: v.detach().cpu().contiguous() for k, v in checkpoint.tensors.items()}, partial / STATE)
        meta = {
            "step": checkpoint.step,
            "bytes": (partial / STATE).stat().st_size,
            "shapes": shapes_id(checkpoint),
        }
        (partial / META).write_text(json.dumps(meta | {"meta": checkpoint.meta}))
        for file in (partial / STATE, partial / META):
            _flush(file)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
    except Exception as error:  # safetensors raises its own error type when the disk is full
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"checkpoint {target} could not be written ({error}); earlier checkpoints are whole: free "
            f"space, then --resume"
        ) from error
    return target


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read one checkpoint folder.

    Raises:
        CheckpointError: it is missing, half-written or damaged.
    """
    try:
        meta = json.loads((folder / META).read_text())
        if (folder / STATE).stat().st_size != meta["bytes"]:
            raise ValueError(
                f"{STATE} has {(folder / STATE).stat().st_size} bytes, {meta['bytes']} were written"
            )
        tensors = load_file(folder / STATE)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder} is no whole checkpoint ({error}): name an earlier one, or the run folder"
        ) from error
    return Checkpoint(step=int(meta["step"]), tensors=tensors, meta=meta["meta"])


def newest(folder: Path) -> Path | None:
    """The checkpoint of the highest step in ``folder``; half-written ones never have its name."""
    found = sorted(
        p for p in folder.glob("step-*") if re.fullmatch(r"step-\d{6,}", p.name) and (p / META).exists()
    )
    return found[-1] if found else None


def prune(folder: Path, keep: int, protected: str | None = None) -> None:
    """Delete all but the ``keep`` newest checkpoints and the ``protected`` one."""
    found = sorted(p for p in folder.glob("step-*") if p.is_dir())
    for path in found[: max(0, len(found) - keep)]:
        if path.name != protected:
            shutil.rmtree(path)


def shapes_id(checkpoint: Checkpoint) -> str:
    """Fingerprint of the names and shapes of the trained parameters."""
    names = sorted(f"{k}{tuple(v.shape)}" for k, v in checkpoint.part("policy").items())
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def check_fits(checkpoint: Checkpoint, own: Mapping[str, Tensor], where: str) -> None:
    """Refuse a checkpoint of another model.

    Raises:
        CheckpointError: names or shapes of the trained parameters differ.
    """
    saved = checkpoint.part("policy")
    odd = sorted(set(saved) ^ set(own)) or sorted(k for k in own if own[k].shape != saved[k].shape)
    if odd:
        raise CheckpointError(
            f"{where} belongs to another model or adapter: {len(odd)} parameters differ, first {odd[0]!r};"
            " resume with the recipe of that run (config.yaml beside it)"
        )


def check_same_run(
    checkpoint: Checkpoint, recipe: Mapping[str, Any], base: str, where: str, agree: Sequence[str]
) -> None:
    """Refuse a checkpoint of a run that trained something else, though its parameters have the same shapes.

    Args:
        checkpoint: what is to be gone on from.
        recipe: this run's resolved recipe, as plain values.
        base: digest of the weights that this run started from.
        where: the checkpoint's path.
        agree: keys of the recipe, blocks or single options, that must be equal.

    Raises:
        CheckpointError: names the first key that differs, or the base.
    """
    remedy = "resume with the recipe of that run (config.yaml beside it), or start a new run"
    if "recipe" not in checkpoint.meta:
        raise CheckpointError(f"{where} does not say what it was trained with (too old): start a new run")
    saved, own = _flat(checkpoint.meta["recipe"], agree), _flat(recipe, agree)
    for key in sorted(set(saved) | set(own)):
        if saved.get(key) != own.get(key):
            found = f"{key} is {saved.get(key)!r} there and {own.get(key)!r} here"
            raise CheckpointError(f"{where} belongs to another run: {found}; {remedy}")
    half = {"fp32", "bf16", "fp16"}  # a run may change between these, which round the base differently
    kinds = {checkpoint.meta["recipe"]["precision"], recipe["precision"]}
    if len(kinds) > 1 and not kinds <= half:
        raise CheckpointError(f"{where} belongs to another run: precision is {' or '.join(kinds)}; {remedy}")
    if len(kinds) == 1 and checkpoint.meta["base"] != base:
        raise CheckpointError(
            f"{where} was trained on other base weights than those of policy.model "
            f"{recipe['policy']['model']}; {remedy}"
        )


def _flat(recipe: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Options under ``keys`` by their whole name."""
    flat: dict[str, Any] = {}

    def walk(value: Any, key: str) -> None:
        if isinstance(value, Mapping):
            for name, inner in value.items():
                walk(inner, f"{key}.{name}" if key else str(name))
        elif any(key == k or key.startswith(f"{k}.") for k in keys):
            flat[key] = value

    walk(recipe, "")
    return flat


def set_aside(folder: Path, step: int) -> Path | None:
    """Move checkpoints beyond ``step`` out of the way of a run that goes on from there; says where to.

    Left in place they would be taken for its own: kept in place of its new ones, and resumed from.
    """
    later = sorted(p for p in folder.glob("step-*") if int(p.name.removeprefix("step-")) > step)
    if not later:
        return None
    target, i = folder / "aside-1", 1
    while target.exists():
        i += 1
        target = folder / f"aside-{i}"
    target.mkdir()
    for path in later:
        os.replace(path, target / path.name)
    return target


def pack_optimizer(
    optimizer: torch.optim.Optimizer, names: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Optimizer state by parameter name: tensors, and what is not a tensor."""
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    for name, parameter in names.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{name}/{key}"] = value
            else:
                scalars[f"{name}/{key}"] = value
    return tensors, scalars


def unpack_optimizer(
    optimizer: torch.optim.Optimizer,
    names: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    scalars: Mapping[str, Any],
) -> None:
    """Put saved optimizer state back; step counters stay where the optimizer wants them (on the CPU unless
    fused).
    """
    for key, value in (*tensors.items(), *scalars.items()):
        name, _, entry = key.rpartition("/")
        parameter = names[name]
        if isinstance(value, Tensor):
            whole = value.shape == parameter.shape  # a factor, or a step counter, is not cut up
            value = like(value.clone(), parameter) if whole else value.clone().to(parameter.device)
        optimizer.state[parameter][entry] = value


def _flush(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
