"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from diffalign.train.blocks import OptimConfig

RELATIVE = "relative"
"""Entry of a parameter group: its learning rate as a multiple of the recipe's, 1 where it is missing."""


def build_optimizer(
    parameters: Iterable[nn.Parameter] | Sequence[dict[str, Any]], config: OptimConfig
) -> torch.optim.Optimizer:
    """Make the optimizer that a recipe names.

    Args:
        parameters: what is trained, or groups of it with options of their own.
        config: all other options.

    Raises:
        RuntimeError: adamw8bit without bitsandbytes or without a GPU.
    """
    chosen: list[Any] = list(parameters)
    if config.name == "adafactor":
        from transformers.optimization import Adafactor

        fixed = {"scale_parameter": False, "relative_step": False, "clip_threshold": 1.0}
        out: torch.optim.Optimizer = Adafactor(
            chosen, lr=config.learning_rate, weight_decay=config.weight_decay, **fixed
        )
        return out
    options: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": config.betas,
        "eps": config.eps,
        "weight_decay": config.weight_decay,
    }
    if config.name == "adamw8bit":
        return _eight_bit()(chosen, **options)
    return torch.optim.AdamW(chosen, fused=True, **options)


def _eight_bit() -> type[torch.optim.Optimizer]:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise RuntimeError(
            "optim.name=adamw8bit needs bitsandbytes: pip install 'diffalign[8bit]', or take adamw"
        ) from error
    if not torch.cuda.is_available():
        raise RuntimeError("optim.name=adamw8bit needs a GPU; take adamw on a CPU")
    optimizer: type[torch.optim.Optimizer] = AdamW8bit
    return optimizer


def learning_rate(step: int, steps: int, config: OptimConfig) -> float:
    """Learning rate of step 0, 1, ... of ``steps``: linear warm-up, then constant, linear to 0 or cosine to
    0.
    """
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    share = (step - config.warmup) / max(1, steps - config.warmup)
    factor = {"constant": 1.0, "linear": 1 - share, "cosine": 0.5 * (1 + math.cos(math.pi * share))}
    return config.learning_rate * factor[config.schedule]


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the learning rate of all groups, each times its own multiple."""
    for group in optimizer.param_groups:
        group["lr"] = value * group.get(RELATIVE, 1.0)
