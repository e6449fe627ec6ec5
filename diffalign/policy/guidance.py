"""Classifier-free guidance with a second model in the unconditional branch: NPO and Self-NPO.

    eps = eps_neg(x, c-) + g (eps_pos(x, c) - eps_neg(x, c-))
    theta_neg = m theta_base + (1 - m) theta_pos + delta

(Diffusion-NPO, arXiv:2505.11245.) All three models are one network with LoRAs on it: the base without any,
the positive one with its own, and the negative one with delta and, at 1 - m of their strength, those of the
positive one. The sampler stays that of the diffusers pipeline: only the two halves of its doubled batch meet
other LoRAs.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from diffalign.policy.fold import folded
from diffalign.policy.lora import ADAPTER, active_adapters, add_frozen, lora_file, tuner_layers

if TYPE_CHECKING:
    from diffalign.policy.base import Policy

FILE = "guidance.json"
FORMAT = 1
SELF = "self"
NEGATIVE, POSITIVE = "negative", "positive"


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Which LoRAs the two branches of guidance use."""

    negative: str = SELF
    """LoRA of the unconditional branch (delta): a folder or file, or self, the LoRA that is trained."""
    positive: tuple[str, ...] = ()
    """Further LoRAs of the conditional branch; those of policy.adapter.frozen, and the trained one where it
    is not the negative one, are always among them."""
    merge: float = 0.0
    """Weight m of the base in the negative model: 0 puts delta on the positive model, 1 on the base."""

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0 <= self.merge <= 1:
            raise ValueError(f"guidance.merge is {self.merge}; it must be in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class Branches:
    """Guidance whose LoRAs are loaded: the names of the adapters."""

    positive: tuple[str, ...]
    """Adapters of the conditional branch; none is the base."""
    negative: str
    """Adapter of the unconditional branch."""
    merge: float
    """Weight of the base in the negative model, in [0, 1]."""

    @property
    def names(self) -> list[str]:
        """All adapters."""
        return [*self.positive, self.negative]


def add_branches(policy: Policy, guidance: Guidance) -> Branches:
    """Load the LoRAs of guidance into a policy; see Policy.set_guidance."""
    trained = [] if policy.adapter is None else [ADAPTER]
    if guidance.negative == SELF:
        if not trained:
            raise ValueError(
                "guidance.negative is self, and this policy trains no LoRA: name the folder of one"
            )
        negative, trained = trained[0], []
    else:
        negative = _load(policy.pipeline, policy.denoiser, guidance.negative, NEGATIVE)
    own = _load_all(policy.pipeline, policy.denoiser, guidance.positive)
    positive = (*policy.frozen_adapters, *trained, *own)
    return Branches(positive=positive, negative=negative, merge=guidance.merge)


def attach(pipeline: Any, folder: str | Path) -> Any:
    """Make a plain diffusers pipeline sample with the two models of a guidance folder; returns the pipeline.

    Raises:
        FileNotFoundError: there is no guidance folder, or a LoRA of it is missing.
        ValueError: the folder is of another format.
    """
    guidance = read_guidance(folder)
    denoiser: nn.Module = pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer
    negative = _load(pipeline, denoiser, guidance.negative, NEGATIVE)
    positive = _load_all(pipeline, denoiser, guidance.positive)
    branches = Branches(positive=positive, negative=negative, merge=guidance.merge)
    denoiser.forward = _two_forwards(pipeline, denoiser, branches)
    return pipeline


def _load_all(pipeline: Any, denoiser: nn.Module, sources: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(_load(pipeline, denoiser, s, f"{POSITIVE}{i}") for i, s in enumerate(sources))


def _load(pipeline: Any, denoiser: nn.Module, source: str, name: str) -> str:
    """Load a LoRA in place of one that had the name before."""
    if any(name in layer.scaling for layer in tuner_layers(denoiser)):
        cast(Any, denoiser).delete_adapters(name)
    add_frozen(pipeline, denoiser, source, name)
    return name


# ---------------------------------------------------------------------- sampling


@contextmanager
def two_models(pipeline: Any, denoiser: nn.Module, branches: Branches | None) -> Iterator[None]:
    """Inside, the pipeline samples with both models; None changes nothing."""
    if branches is None:
        yield
        return
    before = vars(denoiser).get("forward")  # accelerate's, where training has begun
    denoiser.forward = _two_forwards(pipeline, denoiser, branches)
    try:
        yield
    finally:
        del denoiser.forward
        if before is not None:
            denoiser.forward = before


def _two_forwards(pipeline: Any, denoiser: nn.Module, branches: Branches) -> Callable[..., tuple[Tensor]]:
    """Stand-in for ``denoiser.forward``; it takes whatever that takes, for each pipeline calls its own way.

    Where the pipeline guides, the first half of its batch is the unconditional one: so all of diffusers do.
    """
    plain = denoiser.forward

    def forward(*inputs: Any, **named: Any) -> tuple[Tensor]:
        if not pipeline.do_classifier_free_guidance:
            with _positive(denoiser, branches), folded(denoiser):
                return cast("tuple[Tensor]", plain(*inputs, **named))
        rows = _rows(inputs, named)
        outputs = []
        for half, branch in enumerate((_negative, _positive)):
            some, others = _half(inputs, rows, half), _half(named, rows, half)
            with branch(denoiser, branches):
                outputs.append(plain(*some, **others)[0])
        return (torch.cat(outputs),)

    return forward


@contextmanager
def _positive(denoiser: nn.Module, branches: Branches) -> Iterator[None]:
    with active_adapters(denoiser, list(branches.positive)):
        yield


@contextmanager
def _negative(denoiser: nn.Module, branches: Branches) -> Iterator[None]:
    """The base, the positive LoRAs at 1 - m of their strength, and delta."""
    kept = [dict(layer.scaling) for layer in tuner_layers(denoiser)]
    for layer in tuner_layers(denoiser):
        for name in branches.positive:
            if name in layer.scaling:
                layer.scaling[name] *= 1 - branches.merge
    try:
        with active_adapters(denoiser, branches.names):
            yield
    finally:
        for layer, scaling in zip(tuner_layers(denoiser), kept, strict=True):
            layer.scaling.update(scaling)


def _rows(inputs: tuple[Any, ...], named: Mapping[str, Any]) -> int:
    """Rows of the doubled batch: the latents come first, or as ``hidden_states`` (transformers)."""
    latents: Tensor = inputs[0] if inputs else named["hidden_states"]
    return len(latents)


def _half(value: Any, rows: int, half: int) -> Any:
    """One half of every tensor, however deep, that has a row for each of the doubled batch."""
    if isinstance(value, Tensor):
        batched = value.ndim > 0 and len(value) == rows
        return value.chunk(2)[half] if batched else value
    if isinstance(value, dict):
        return {k: _half(v, rows, half) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_half(v, rows, half) for v in value)
    return value


# ---------------------------------------------------------------------- folders


def is_guidance(folder: str | Path) -> bool:
    """Whether there is a guidance folder."""
    return (Path(folder) / FILE).is_file()


def write_guidance(folder: Path, guidance: Guidance) -> Path:
    """Save the LoRAs of both branches and the merge weight in one folder that can be moved and shared.

    The folder appears whole or not at all; an older one there is replaced.

    Raises:
        FileNotFoundError: there is no LoRA where one is named.
        ValueError: the negative LoRA is ``self``: export it first and name its folder.
    """
    if guidance.negative == SELF:
        raise ValueError("the negative LoRA is self, which is no file: export it and name its folder")
    names = [f"{POSITIVE}-{i}" for i in range(len(guidance.positive))]
    sources = {NEGATIVE: guidance.negative} | dict(zip(names, guidance.positive, strict=True))
    files = {name: lora_file(source) for name, source in sources.items()}
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for name, file in files.items():
        (partial / name).mkdir(parents=True)
        shutil.copyfile(file, partial / name / "pytorch_lora_weights.safetensors")
    content = {"format": FORMAT, "merge": guidance.merge, "positive": names, "negative": NEGATIVE}
    (partial / FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    return folder


def read_guidance(folder: str | Path) -> Guidance:
    """Guidance of a folder that ``write_guidance`` made.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is of another format, or a name in it leads out of the folder.
    """
    path = Path(folder)
    if not is_guidance(path):
        raise FileNotFoundError(f"no guidance at {folder}: a folder with {FILE} is needed")
    content = json.loads((path / FILE).read_text(encoding="utf-8"))
    if content.get("format") != FORMAT:
        raise ValueError(f"{path / FILE} is of format {content.get('format')}, not {FORMAT}: export it again")
    names = [content["negative"], *content["positive"]]
    if any(Path(name).name != name or name in (".", "..") for name in names):
        raise ValueError(f"{path / FILE} names LoRAs outside of its folder: {', '.join(names)}")
    negative, *positive = (str(path / name) for name in names)
    return Guidance(negative=negative, positive=tuple(positive), merge=float(content["merge"]))
