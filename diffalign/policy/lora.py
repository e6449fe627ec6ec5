"""LoRA on the denoiser through peft: add, freeze, load, and switch without touching requires_grad."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

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
    """Scale: the update is multiplied by alpha / rank; None takes that of init_from, else alpha = rank."""
    dropout: float = 0.0
    """Dropout on the trained LoRA branch while training; reference and first stages never see it. With
    init_from the first loss is therefore only near that of equal models."""
    targets: tuple[str, ...] = ()
    """Names (or endings) of the modules to adapt; empty takes the family's attention projections."""
    init_from: str | None = None
    """Folder or file of an existing LoRA to start from, at its own strength; the reference is then that LoRA,
    frozen."""
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


def active_names(module: nn.Module) -> list[str]:
    """Names of the adapters that are active in any layer, in their order."""
    found: dict[str, None] = {}
    for layer in tuner_layers(module):
        names = layer._active_adapter
        found |= dict.fromkeys([names] if isinstance(names, str) else names)
    return list(found)


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
    """Add a frozen copy of the trained adapter under another name: same dtype, and without its dropout."""
    source = adapter_parameters(denoiser, ADAPTER)
    add_adapter(denoiser, replace(config, dropout=0.0), targets, to)
    for key, parameter in adapter_parameters(denoiser, to).items():
        parameter.data = source[key.replace(f".{to}.", f".{ADAPTER}.")].data.clone()
    denoiser.set_adapter(ADAPTER)


def without_dropout(denoiser: nn.Module, name: str) -> None:
    """Switch off the dropout that an adapter brought along from its file's metadata."""
    for layer in tuner_layers(denoiser):
        if name in layer.lora_dropout:
            layer.lora_dropout[name] = nn.Identity()


@dataclass(frozen=True, kw_only=True)
class SavedLora:
    """A LoRA file as it was read."""

    state: dict[str, Tensor]
    """Tensors without the leading component name."""
    rank: int = 0
    """0 where the file has no metadata."""
    alpha: float | None = None
    """Its update is multiplied by alpha / rank; None where the file has no metadata."""


def with_source_alpha(config: AdapterConfig) -> AdapterConfig:
    """Options whose alpha is that of ``init_from`` where none was asked for; others stay as they are.

    Raises:
        FileNotFoundError: there is no LoRA at ``init_from``.
        ValueError: its strength differs from module to module.
    """
    if config.init_from is None or config.alpha is not None:
        return config
    alpha = read_lora(config.init_from).alpha
    return config if alpha is None else replace(config, alpha=alpha)


def load_adapter(denoiser: nn.Module, source: str, config: AdapterConfig, name: str = ADAPTER) -> None:
    """Fill the adapter called ``name`` from a saved LoRA of the same shape (an exported folder or file).

    Where the file's strength (alpha / rank) is not that of ``config``, B is multiplied by their ratio: the
    effect is that of the saved LoRA.

    Raises:
        FileNotFoundError: there is no LoRA at ``source``.
        ValueError: its keys or shapes are not those of the adapter, or its strength differs by module.
    """
    saved = read_lora(source)
    own = {_plain_key(k, name): p for k, p in adapter_parameters(denoiser, name).items()}
    _check_fits(saved.state, own, source)
    ratio = _strength_ratio(saved, config, source)
    for key, parameter in own.items():
        parameter.data.copy_(saved.state[key])
        if "lora_B" in key and ratio != 1:
            parameter.data *= ratio


def _check_fits(state: dict[str, Tensor], own: dict[str, nn.Parameter], source: str) -> None:
    odd = sorted(set(state) ^ set(own)) or [k for k in own if state[k].shape != own[k].shape]
    if odd:
        raise ValueError(
            f"the LoRA at {source} does not fit this adapter (first differences: {odd[:3]}): use its rank "
            f"and targets"
        )


def _strength_ratio(saved: SavedLora, config: AdapterConfig, source: str) -> float:
    """Strength of the saved LoRA over that of the adapter; 1 where the file does not say."""
    alpha = config.rank if config.alpha is None else config.alpha
    if saved.alpha is not None:
        return (saved.alpha / saved.rank) / (alpha / config.rank)
    log.warning(
        "the LoRA at %s does not say its alpha: it is taken to be %g at rank %d; if it was trained with "
        "another one, set policy.adapter.alpha",
        source,
        alpha,
        config.rank,
    )
    return 1.0


def _plain_key(key: str, name: str) -> str:
    return key.replace(f".{name}.", ".")


def lora_file(source: str) -> Path:
    """File of a LoRA that is here: looked for before diffusers would look for it on a hub.

    Raises:
        FileNotFoundError: there is no LoRA at ``source``.
    """
    path = Path(source)
    file = path / "pytorch_lora_weights.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(
            f"no LoRA at {source}: a folder with pytorch_lora_weights.safetensors or that file is needed"
        )
    return file


def load_into(pipeline: Any, source: str, name: str | None = None) -> None:
    """Load a LoRA that is here into a pipeline, without a look at any hub.

    Raises:
        FileNotFoundError: there is no LoRA at ``source``.
    """
    file = lora_file(source)
    pipeline.load_lora_weights(
        str(file.parent), weight_name=file.name, adapter_name=name, local_files_only=True
    )


def add_frozen(pipeline: Any, denoiser: nn.Module, source: str, name: str) -> None:
    """Load a LoRA that is here under a name, for pictures or a reference: no dropout, no gradient.

    Its weights are kept in fp32 at least, on the denoiser's device. Which adapters are active, and what is
    trained, stays as it was.

    Raises:
        FileNotFoundError: there is no LoRA at ``source``.
        ValueError: it holds nothing for the denoiser.
    """
    trained = {id(p) for p in denoiser.parameters() if p.requires_grad}
    active = active_names(denoiser)
    device = next(denoiser.parameters()).device
    load_into(pipeline, source, name)
    without_dropout(denoiser, name)
    found = adapter_parameters(denoiser, name)
    if not found:
        raise ValueError(f"the LoRA at {source} holds nothing for {type(denoiser).__name__}")
    for parameter in found.values():
        parameter.data = parameter.data.to(device, torch.promote_types(parameter.dtype, torch.float32))
    for parameter in denoiser.parameters():
        parameter.requires_grad_(id(parameter) in trained)
    for layer in tuner_layers(denoiser):
        layer._active_adapter = [n for n in active if n in layer.scaling]


def read_lora(source: str) -> SavedLora:
    """Read a LoRA from an exported folder or a file.

    Raises:
        FileNotFoundError: there is no LoRA at ``source``.
        ValueError: its strength differs from module to module.
    """
    from safetensors import safe_open

    file = lora_file(source)
    with safe_open(file, "pt") as opened:
        state = {k.split(".", 1)[1]: opened.get_tensor(k) for k in opened.keys()}  # noqa: SIM118 (no dict)
        packed = json.loads((opened.metadata() or {}).get("lora_adapter_metadata", "{}"))
    return _described(state, {k.split(".", 1)[-1]: v for k, v in packed.items()}, source)


def _described(state: dict[str, Tensor], metadata: dict[str, Any], source: str) -> SavedLora:
    if metadata.get("alpha_pattern") or metadata.get("rank_pattern"):
        raise ValueError(
            f"the LoRA at {source} has another alpha or rank in some modules (alpha_pattern, rank_pattern), "
            f"which one adapter cannot hold: put it into policy.adapter.frozen instead of init_from"
        )
    if "r" not in metadata or "lora_alpha" not in metadata:
        return SavedLora(state=state)
    rank, alpha = int(metadata["r"]), float(metadata["lora_alpha"])
    # a rank-stabilised LoRA is multiplied by alpha / sqrt(rank)
    return SavedLora(
        state=state, rank=rank, alpha=alpha * math.sqrt(rank) if metadata.get("use_rslora") else alpha
    )


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
