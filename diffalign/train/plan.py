"""What a run is going to do, before it does it: passes, parameters, memory, derived quantities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from diffalign.objectives import Objective
from diffalign.objectives.beta import sum_beta
from diffalign.policy import Policy
from diffalign.train.blocks import OptimConfig
from diffalign.train.config import TrainConfig
from diffalign.train.terms import innermost

GIB = 1024**3
STATE_BYTES = {"adamw": 8, "adamw8bit": 2, "adafactor": 1}
"""Bytes of optimizer state per trained parameter (adafactor's factors are far below one byte; one is a
ceiling).
"""
SAVED_SHARE = {"sd": 0.21, "sdxl": 0.084, "sd3": 0.36}
"""Share of a model's outputs at full token count that is saved; UNets narrow the grid level by level."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Figures of a run."""

    family: str
    trainable: int
    frozen: int
    elements: int
    """Latent elements per image (D)."""
    passes: str
    steps: int
    units: int
    """Comparison units seen in all."""
    memory_gib: dict[str, float]
    beta_mean: float | None
    beta_sum: float | None

    def lines(self) -> list[str]:
        """The plan as text, one fact a line."""
        memory = ", ".join(f"{k} {v:.2f}" for k, v in self.memory_gib.items())
        text = [
            f"model       {self.family}: {self.trainable:,} parameters trained, {self.frozen:,} frozen",
            f"each step   {self.passes}",
            f"in all      {self.steps} steps, {self.units:,} comparison units",
            f"memory      {sum(self.memory_gib.values()):.2f} GiB a process ({memory}; an estimate)",
        ]
        if self.beta_mean is not None and self.beta_sum is not None:
            text.append(
                f"beta        {self.beta_mean:g} on mean errors = {self.beta_sum:.4g} on summed errors "
                f"(D = {self.elements:,})"
            )
        return text


def make_plan(config: TrainConfig, policy: Policy, processes: int, shards: int = 1) -> Plan:
    """Work out a run's figures from its recipe and the (possibly weightless) policy.

    ``shards``: processes that the denoiser is cut up over.
    """
    trained = sum(p.numel() for p in policy.trainable().values())
    every = sum(p.numel() for p in policy.denoiser.parameters())
    elements = latent_elements(policy, config.data.resolution)
    inner = innermost(config.objective)
    beta = getattr(inner, "beta", None) if inner.needs_reference else None
    return Plan(
        family=f"{policy.family.name}, {policy.process.prediction} prediction",
        trainable=trained,
        frozen=every - trained,
        elements=elements,
        passes=passes(config.objective, config.batch, rows_per_unit(config.objective)),
        steps=config.steps,
        units=config.steps * config.batch,
        memory_gib=memory(config, policy, trained, every, processes, shards),
        beta_mean=beta,
        beta_sum=None if beta is None else sum_beta(beta, elements),
    )


def rows_per_unit(objective: Objective) -> int:
    """Images of one comparison unit: 2 for pairs, 1 otherwise (lists vary)."""
    return 2 if objective.data == "pairs" else 1


def passes(objective: Objective, batch: int, rows: int) -> str:
    """Network passes of one step in words."""
    images = batch * rows
    text = f"policy forward and backward on {images} images"
    return text + (f", reference forward on {images}" if objective.needs_reference else ", no reference")


def latent_side(policy: Policy, resolution: int) -> int:
    """Side of the latent of a picture of ``resolution`` pixels."""
    return resolution // int(policy.pipeline.vae_scale_factor)


def latent_elements(policy: Policy, resolution: int) -> int:
    """D: elements of one latent at the resolution that is trained on, which need not be the model's own."""
    config: Any = policy.denoiser.config
    return int(config.in_channels) * latent_side(policy, resolution) ** 2


def memory(
    config: TrainConfig, policy: Policy, trained: int, every: int, processes: int, shards: int = 1
) -> dict[str, float]:
    """GiB per process by kind; activations are a rough count of saved tensors, the rest is exact."""
    width = {"fp32": 4, "fp64": 8, "bf16": 2, "fp16": 2}[config.precision]
    base = every * (width if config.policy.adapter else 4)
    copied = config.needs_reference or config.evaluate.prompts or config.validate.every
    copy = every * 4 if copied and config.policy.adapter is None else 0
    state = trained * (4 + STATE_BYTES[config.optim.name]) + (trained * 4 if config.ema else 0)
    rows = max(1, config.batch // config.accumulate // processes) * rows_per_unit(config.objective)
    saved = 0.15 if config.policy.gradient_checkpointing else 1.0
    activations = rows * activation_elements(policy, config.data.resolution) * width * saved
    parts = {
        "weights": base / shards,
        "encoders and VAE": encoder_bytes(policy),
        "copy of the base": copy / shards,
        "gradients and optimizer": state / shards,
        "activations": activations,
    }
    return {k: v / GIB for k, v in parts.items() if v}


def encoder_bytes(policy: Policy) -> int:
    """Bytes of all networks but the denoiser: they stay on the device, in the dtype they were loaded in."""
    parts = [p for p in policy.pipeline.components.values() if isinstance(p, nn.Module)]
    others = [p for p in parts if p is not policy.denoiser]
    return sum(w.numel() * w.element_size() for part in others for w in part.parameters())


def activation_elements(policy: Policy, resolution: int) -> float:
    """Elements saved for the backward pass per image: a share of what all layers put out.

    SAVED_SHARE is fitted to counted activations of LoRA training: 0.80 GB an image for SD1.5 at 512 px,
    5.6 for SDXL and 3.9 for SD3-medium at 1024 px (bf16, memory-efficient attention).
    """
    config: Any = policy.denoiser.config
    side = latent_side(policy, resolution)
    widths = [m.out_features for m in policy.denoiser.modules() if isinstance(m, nn.Linear)]
    convolutions = [m.out_channels for m in policy.denoiser.modules() if isinstance(m, nn.Conv2d)]
    patch = int(getattr(config, "patch_size", 1) or 1)
    tokens = (side // patch) ** 2
    share = SAVED_SHARE.get(policy.family.name, 0.36)
    return tokens * share * (sum(widths) + 2 * sum(convolutions))


def check_optimizer(config: OptimConfig) -> None:
    """Fail early where the chosen optimizer cannot run here.

    Raises:
        RuntimeError: see build_optimizer.
    """
    if config.name == "adamw8bit":
        from diffalign.train.optim import build_optimizer

        build_optimizer([nn.Parameter(torch.zeros(1))], config)
