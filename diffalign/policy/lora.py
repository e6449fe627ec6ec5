"""LoRA on the denoiser through peft: add, freeze, load, and switch without touching requires_grad."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ADAPTER = "default"
"""Name of the adapter that is trained."""
START = "start"
"""Name of the frozen copy of it, for a reference that is not the base model."""


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Which LoRA to train."""

    rank: int = 8
    """Rank of the update."""
    alpha: float | None = None
    """Scale: the update is multiplied by alpha / rank; None takes alpha = rank."""
    dropout: float = 0.0
    """Dropout on the LoRA branch (the reference never sees it)."""
    targets: tuple[str, ...] = ()
    """Names (or endings) of the modules to adapt; empty takes the family's attention projections."""
    init_from: str | None = None
    """Folder or file of an existing LoRA to start from; the reference is then that LoRA, frozen."""
    seed: int = 0
    """Seed of the initial A matrices."""
    frozen: tuple[str, ...] = field(default=())
    """Folders of LoRAs that stay active and untouched in policy and reference alike (a first stage)."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.rank < 1:
            raise ValueError(f"adapter.rank is {self.rank}; it must be at least 1")
        if self.alpha is not None and self.alpha <= 0:
            raise ValueError(f"adapter.alpha is {self.alpha}; it must be above 0")


def tuner_layers(module: nn.Module) -> list[Any]:
    """Every peft layer of a module."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [m for m in module.modules() if isinstance(m, BaseTunerLayer)]


def add_adapter(denoiser: Any, config: AdapterConfig, targets: tuple[str, ...], name: str = ADAPTER) -> None:
    """Add a fresh LoRA (B = 0, so the policy starts at the reference) with weights in fp32.

    Raises:
        ValueError: none of the target modules exists in the model.
    """
    from peft import LoraConfig

    wanted = config.targets or targets
    found = any(n == t or n.endswith("." + t) for n, _ in denoiser.named_modules() for t in wanted)
    if not found:
        raise ValueError(
            f"adapter.targets {', '.join(wanted)}: no module of {type(denoiser).__name__} has such a name"
        )
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.rank if config.alpha is None else config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(wanted),
        init_lora_weights="gaussian",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        denoiser.add_adapter(lora, adapter_name=name)
    for parameter in adapter_parameters(denoiser, name).values():
        parameter.data = parameter.data.float()


def adapter_parameters(denoiser: nn.Module, name: str = ADAPTER) -> dict[str, nn.Parameter]:
    """Parameters of one adapter, by their full names."""
    return {n: p for n, p in denoiser.named_parameters() if f".{name}." in n and "lora_" in n}


def freeze_all_but(denoiser: nn.Module, name: str) -> None:
    """Train the adapter called ``name`` and nothing else."""
    chosen = {id(p) for p in adapter_parameters(denoiser, name).values()}
    for parameter in denoiser.parameters():
        parameter.requires_grad_(id(parameter) in chosen)


def copy_adapter(denoiser: Any, config: AdapterConfig, targets: tuple[str, ...], to: str) -> None:
    """Add a frozen copy of the trained adapter under another name."""
    source = adapter_parameters(denoiser, ADAPTER)
    add_adapter(denoiser, config, targets, to)
    for key, parameter in adapter_parameters(denoiser, to).items():
        parameter.data.copy_(source[key.replace(f".{to}.", f".{ADAPTER}.")].data)
    denoiser.set_adapter(ADAPTER)


def load_adapter(denoiser: nn.Module, source: str, name: str = ADAPTER) -> None:
    """Fill the adapter called ``name`` from a saved LoRA of the same shape (an exported folder or file).

    Raises:
        FileNotFoundError: there is no LoRA at ``source``.
        ValueError: its keys or shapes are not those of the adapter.
    """
    state = read_lora(source)
    own = {_plain_key(k, name): p for k, p in adapter_parameters(denoiser, name).items()}
    if set(state) != set(own) or any(state[k].shape != own[k].shape for k in own):
        odd = sorted(set(state) ^ set(own))[:3] or [k for k in own if state[k].shape != own[k].shape][:3]
        raise ValueError(
            f"the LoRA at {source} does not fit this adapter (first differences: {odd}): use its rank "
            f"and targets"
        )
    for key, parameter in own.items():
        parameter.data.copy_(state[key])


def _plain_key(key: str, name: str) -> str:
    return key.replace(f".{name}.", ".")


def read_lora(source: str) -> dict[str, Tensor]:
    """Tensors of a saved LoRA, without the leading component name."""
    from safetensors.torch import load_file

    path = Path(source)
    file = path / "pytorch_lora_weights.safetensors" if path.is_dir() else path
    if not file.exists():
        raise FileNotFoundError(
            f"no LoRA at {source}: a folder with pytorch_lora_weights.safetensors or that file is needed"
        )
    return {k.split(".", 1)[1]: v for k, v in load_file(file).items()}


@contextmanager
def active_adapters(denoiser: nn.Module, names: list[str]) -> Iterator[None]:
    """Make exactly these adapters active, then restore.

    Only the list that peft's layers read in ``forward`` is swapped: peft's own switches would also turn on
    the
    gradients of adapters that were frozen on purpose.
    """
    layers = tuner_layers(denoiser)
    before = [layer._active_adapter for layer in layers]
    for layer in layers:
        layer._active_adapter = [n for n in names if n in layer.scaling]
    try:
        yield
    finally:
        for layer, active in zip(layers, before, strict=True):
            layer._active_adapter = active
