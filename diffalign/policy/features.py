"""Frozen views into a policy's networks: hidden states of its denoiser without the LoRA, and its decoder.

Gradients go through them to their inputs and nowhere else; every requires_grad stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffalign.policy.family import Cond
from diffalign.policy.lora import active_adapters
from diffalign.policy.precision import HALF

if TYPE_CHECKING:
    from diffalign.policy.base import Policy

Maps = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Names of modules of a denoiser."""

    watched: tuple[str, ...]
    """Those whose outputs are the features, in the order in which they run; the last one ends the pass."""
    unused: tuple[str, ...]
    """Those that never run, for a copy that leaves them out."""


def encoder_parts(policy: Policy) -> Parts:
    """conv_in and the down blocks of a UNet.

    Raises:
        ValueError: the model is no UNet.
    """
    net: Any = policy.denoiser
    if policy.family.component != "unet":
        raise ValueError(f"{type(net).__name__} is no UNet and has no encoder: use space dit_features")
    downs = tuple(f"down_blocks.{i}" for i in range(len(net.down_blocks)))
    return Parts(watched=("conv_in", *downs), unused=("mid_block", "up_blocks", "conv_norm_out", "conv_out"))


def block_parts(policy: Policy, blocks: int) -> Parts:
    """First transformer blocks; 0 takes a third of them, at least one.

    Raises:
        ValueError: the model has no transformer blocks, or not so many.
    """
    net: Any = policy.denoiser
    if policy.family.component != "transformer":
        raise ValueError(f"{type(net).__name__} is no transformer: use space unet_features")
    total = len(net.transformer_blocks)
    count = blocks or max(1, total // 3)
    if count > total:
        raise ValueError(f"blocks is {count}; {type(net).__name__} has {total} blocks only")
    names = [f"transformer_blocks.{i}" for i in range(total)]
    return Parts(watched=tuple(names[:count]), unused=(*names[count:], "norm_out", "proj_out"))


class _Enough(Exception):
    """The last watched module has answered: no error, it ends a pass early."""


class FrozenFeatures:
    """Hidden states of the denoiser as it was before training (first-stage LoRAs stay on)."""

    def __init__(self, policy: Policy, watched: Sequence[str], unused: Sequence[str]) -> None:
        """See Parts. Weights are the policy's, or kept apart where those train or are in half precision."""
        self.policy, self.watched = policy, tuple(watched)
        self.network = frozen_network(policy, unused)

    def __call__(self, x: Tensor, t: Tensor, cond: Cond, sizes: Tensor | None = None) -> Maps:
        """Feature maps, one per watched module, of (N, C, h, w) latents at (N,) times of the process."""
        found: list[Tensor] = []
        call, time = self.policy.family.call, self.policy.process.model_time(t)
        with self._frozen(x), _watching(self.network, self.watched, found):
            try:
                call(self.network, x, time, cond, sizes)
            except _Enough:
                return tuple(found)
        raise RuntimeError(f"{self.watched[-1]} of {type(self.network).__name__} did not run")

    @contextmanager
    def _frozen(self, x: Tensor) -> Iterator[None]:
        """Without the trained LoRA, without autocast, and without recomputation in the backward pass.

        What is recomputed would be so with the LoRA on again.
        """
        names = self.policy.frozen_adapters
        with (
            active_adapters(self.network, names),
            _not_recomputed(self.network),
            torch.autocast(x.device.type, enabled=False),
        ):
            yield


def frozen_network(policy: Policy, unused: Sequence[str]) -> nn.Module:
    """The base in fp32 at least: the policy's own network, its frozen start, or a copy of what is used.

    Raises:
        ValueError: the denoiser is cut up over processes, whose parts meet only in whole passes.
    """
    from torch.distributed.tensor import DTensor

    if any(isinstance(p, DTensor) for p in policy.denoiser.parameters()):
        raise ValueError(
            "spaces of the denoiser's features end its pass early, which a denoiser cut up over processes "
            "(FSDP2) cannot do: launch with training/accelerate/gpu-ddp.yaml, or use space native"
        )
    if policy.adapter is None:
        policy.keep_base()
        kept = policy._copy  # in fp32 at least, whatever the policy computes in
        if kept is None:
            raise RuntimeError("a policy that is trained whole kept no copy of its start")
        return kept
    return policy.denoiser if policy.dtype not in HALF else _wide_copy(policy.denoiser, unused)


def _wide_copy(network: nn.Module, unused: Sequence[str]) -> nn.Module:
    """Frozen fp32 copy of a network without its unused modules."""
    left_out: dict[int, Any] = {id(network.get_submodule(name)): nn.Identity() for name in unused}
    copy: nn.Module = deepcopy(network, left_out).requires_grad_(False).float()
    vars(copy).pop("forward", None)  # accelerate's, which would run the original
    return copy


@contextmanager
def _watching(network: nn.Module, names: Sequence[str], found: list[Tensor]) -> Iterator[None]:
    """Inside, outputs of the named modules go to ``found``, and the last one raises _Enough."""

    def keep(module: nn.Module, given: Any, output: Any) -> None:
        # a down block gives (x, skips), a joint block (text, x): the last tensor is the picture's
        found.append([o for o in _listed(output) if isinstance(o, Tensor)][-1])
        if len(found) == len(names):
            raise _Enough

    hooks = [network.get_submodule(name).register_forward_hook(keep) for name in names]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _listed(output: Any) -> Sequence[Any]:
    return output if isinstance(output, tuple | list) else [output]


@contextmanager
def _not_recomputed(network: nn.Module) -> Iterator[None]:
    """Switch gradient checkpointing off, then restore it."""
    on: list[Any] = [m for m in network.modules() if vars(m).get("gradient_checkpointing")]
    for module in on:
        module.gradient_checkpointing = False
    try:
        yield
    finally:
        for module in on:
            module.gradient_checkpointing = True


class FrozenDecoder:
    """The VAE's decoder in its own dtype, whatever autocast is on outside."""

    def __init__(self, policy: Policy) -> None:
        """Check that the decoder can serve.

        Raises:
            ValueError: its weights are in fp16, in which it overflows.
        """
        self.vae: Any = policy.pipeline.vae
        if next(self.vae.parameters()).dtype == torch.float16:
            raise ValueError("the VAE is in fp16, in which it overflows: load it in fp32 or bf16")

    def pixels(self, latents: Tensor) -> Tensor:
        """(N, 3, H, W) pixels around [-1, 1], in fp32 at least, of (N, C, h, w) scaled latents."""
        out: Tensor = self._run(lambda z: self.vae.decode(z, return_dict=False)[0], latents)
        return out if out.element_size() >= 4 else out.float()

    def maps(self, latents: Tensor) -> Maps:
        """Outputs of the decoder's up blocks, coarsest first, of (N, C, h, w) scaled latents."""
        out: Maps = self._run(self._up_blocks, latents)
        return out

    def _up_blocks(self, z: Tensor) -> Maps:
        decoder = self.vae.decoder
        z = z if self.vae.post_quant_conv is None else self.vae.post_quant_conv(z)
        x, found = decoder.mid_block(decoder.conv_in(z), None), []
        for block in decoder.up_blocks:
            x = block(x, None)
            found.append(x)
        return tuple(found)

    def _run(self, function: Callable[[Tensor], Any], latents: Tensor) -> Any:
        with torch.autocast(latents.device.type, enabled=False):
            z = unscaled(self.vae.config, latents)
            return function(z.to(next(self.vae.parameters()).dtype))


def unscaled(config: Any, latents: Tensor) -> Tensor:
    """Latents as the VAE knows them, of those that the denoiser sees; ``config`` is the VAE's."""
    if config.latents_mean is not None and config.latents_std is not None:
        mean, std = (
            torch.tensor(v, device=latents.device, dtype=latents.dtype).view(1, -1, 1, 1)
            for v in (config.latents_mean, config.latents_std)
        )
        back: Tensor = latents * std / config.scaling_factor + mean
        return back
    out: Tensor = latents / config.scaling_factor + (config.shift_factor or 0.0)
    return out
