"""Pictures of an evaluation, as files: those that are there are not made again."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffalign.evaluate.generate import generate
from diffalign.evaluate.models import Model, ModelError, open_model
from diffalign.evaluate.prompts import EvalPrompt
from diffalign.evaluate.request import Request
from diffalign.label.many import Share
from diffalign.policy import Policy

Progress = Callable[[int], None]


def draw(request: Request, share: Share, progress: Progress = lambda n: None) -> None:
    """Make the missing pictures of this process's batches, model by model; one model is loaded at a time.

    Raises:
        ModelError: a model draws in another size than the base.
    """
    mine = request.batches[share.rank :: share.world]
    for model in request.models:
        todo = [batch for batch in mine if missing(request, model.name, batch)]
        progress((sum(map(len, mine)) - sum(map(len, todo))) * request.seeds)
        if todo:
            _draw_model(request, model, todo, progress)


def missing(request: Request, model: str, batch: Sequence[EvalPrompt]) -> bool:
    """Whether a picture of a batch is not there yet."""
    return not all(
        request.picture(model, p.prompt, seed).exists() for p in batch for seed in range(request.seeds)
    )


def _draw_model(
    request: Request, model: Model, batches: Sequence[Sequence[EvalPrompt]], progress: Progress
) -> None:
    policy = open_model(model, request.models[0], request.text_length, request.precision)
    _check_side(request, model, policy)
    for batch in batches:
        prompts = [p.prompt for p in batch]
        pictures = generate(policy, prompts, range(request.seeds), request.sampling, progress)
        for prompt, row in zip(prompts, pictures, strict=True):
            for seed, picture in enumerate(row):
                save(request.picture(model.name, prompt, seed), picture)


def _check_side(request: Request, model: Model, policy: Policy) -> None:
    base = request.models[0]
    if request.sampling.side is None and model is not base:
        found = next(iter(sorted((request.output / base.name).glob("*/0.png"))), None)
        side = policy.side if found is None else int(load([found]).shape[-1])
        if side != policy.side:
            raise ModelError(
                f"{model.name} draws {policy.side} pixels a side and {base.name} {side}: give --side to draw "
                "both alike"
            )


def save(path: Path, picture: Tensor) -> None:
    """Write a (3, H, W) uint8 picture as PNG, whole or not at all; one that is there stays."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(partial, "PNG")
    os.replace(partial, path)


def load(paths: Sequence[Path]) -> Tensor:
    """(N, 3, H, W) uint8 pictures of N files of one size.

    Raises:
        FileNotFoundError: one is missing.
        ModelError: they differ in size.
    """
    pictures = [np.array(Image.open(path).convert("RGB")) for path in paths]
    odd = next((i for i, p in enumerate(pictures) if p.shape != pictures[0].shape), None)
    if odd is not None:
        (h, w, _), (a, b, _) = pictures[0].shape, pictures[odd].shape
        raise ModelError(f"{paths[odd]} has {b} x {a} pixels and {paths[0]} {w} x {h}: they must be alike")
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


def sweep(output: Path) -> None:
    """Delete what a kill has left half written."""
    for partial in output.glob("*/*/.*.partial"):
        partial.unlink()
