"""The denoiser cut up over the processes by torch's ``fully_shard`` (FSDP2), and its tensors made whole.

accelerate says only whether its launcher asked for FSDP. It shards on GPUs alone, and it would cast the
inputs of every block, times included, to half precision.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn

from diffalign.config import ConfigError
from diffalign.policy import Policy
from diffalign.policy.precision import HALF
from diffalign.train.blocks import RunConfig


def fsdp_options() -> Any | None:
    """accelerate's FSDP options (its FullyShardedDataParallelPlugin) where the launcher asked for FSDP.

    They are read from the launcher's variables, since accelerate keeps them on GPUs only.
    """
    from accelerate.utils import FullyShardedDataParallelPlugin, parse_flag_from_env

    return FullyShardedDataParallelPlugin() if parse_flag_from_env("ACCELERATE_USE_FSDP") else None


def shard_count(accelerator: Accelerator) -> int:
    """Processes that the denoiser is cut up over; 1 where each holds it whole."""
    return int(accelerator.num_processes) if fsdp_options() is not None else 1


def check_distribution(kind: DistributedType, config: RunConfig, options: Any | None) -> None:
    """Refuse ways of cutting the model up that the trainer does not know.

    Args:
        kind: how accelerate's processes share the work.
        config: recipe.
        options: see ``fsdp_options``.

    Raises:
        ConfigError: accelerate was started with DeepSpeed, Megatron or FSDP1, or with an option that does not
            fit FSDP2 here.
    """
    if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ConfigError(
            f"accelerate was launched with {kind.value}, which diffalign does not know: launch with "
            "training/accelerate/gpu-ddp.yaml (whole in each process) or gpu-fsdp2.yaml (cut up)"
        )
    if options is not None:
        _check_fsdp(config, options)


def _check_fsdp(config: RunConfig, options: Any) -> None:
    from torch.distributed.fsdp import CPUOffloadPolicy

    refused = {
        f"FSDP version {options.fsdp_version}: take training/accelerate/gpu-fsdp2.yaml (fsdp_version: 2)": (
            options.fsdp_version != 2
        ),
        "fsdp_offload_params: leave it out": isinstance(options.cpu_offload, CPUOffloadPolicy),
        "fsdp_activation_checkpointing: set policy.gradient_checkpointing=true instead": (
            options.activation_checkpointing
        ),
        "precision=fp16: set precision=bf16": config.precision == "fp16",
        f"optim.name={config.optim.name}: set optim.name=adamw": config.optim.name != "adamw",
        "policy.reference ema or pool: take start or off": moving(config),
    }
    for what, found in refused.items():
        if found:
            raise ConfigError(f"accelerate was launched with FSDP, and diffalign cannot shard with {what}")


def moving(config: RunConfig) -> bool:
    """Whether the reference changes while the policy is trained."""
    kind = config.policy.reference
    return (kind if isinstance(kind, str) else kind.name) in ("ema", "pool")


# ------------------------------------------------------------------ tensors


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that is cut up, in the same memory; any other tensor as it is."""
    part = getattr(tensor, "to_local", None)
    return tensor if part is None else part()


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that is cut up, on every process (a collective); any other tensor as it is."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def like(tensor: Tensor, target: Any) -> Tensor:
    """``tensor``, whole and the same on all processes, on the device of ``target`` and cut up as that is."""
    if not hasattr(target, "full_tensor"):
        return tensor.to(target.device)
    from torch.distributed.tensor import distribute_tensor

    # each process cuts out its own part, so nothing has to be sent
    value, mesh = tensor.to(target.device), target.device_mesh
    return distribute_tensor(value, mesh, target.placements, src_data_rank=None)


@torch.no_grad()
def put(target: Tensor, value: Tensor) -> None:
    """Copy a whole ``value``, the same on all processes, into ``target``, whole or cut up."""
    target.copy_(like(value, target) if hasattr(target, "full_tensor") else value)


def gathered(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """The same with whole tensors (a collective).

    Those that were cut up come to the host one by one, so that no device has to hold them all; without
    ``keep`` they are left out.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        full = whole(tensor)
        if full is tensor:
            found[name] = tensor
        elif keep:
            found[name] = full.cpu()
    return found


# ------------------------------------------------------------------ networks


class Shards:
    """A policy's denoiser, and the frozen copy of it where one is kept, cut up over all processes."""

    def __init__(self, policy: Policy, accelerator: Accelerator, *, reshard: bool) -> None:
        """Cut up, in place; every process has the same whole networks before.

        Args:
            policy: its reference and base are set already.
            accelerator: of an initialised process group.
            reshard: whether a block's weights are let go between forward and backward.
        """
        from torch.distributed.device_mesh import init_device_mesh

        self.policy, self.main = policy, bool(accelerator.is_main_process)
        self.mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        self.reduce = accelerator.reduce
        self.frames = [frame(network) for network in policy.networks]
        for network in policy.networks:
            # the copy has no backward pass after which its root would let go
            self._cut(network, reshard, None if network is policy.denoiser else True)

    def _cut(self, network: nn.Module, reshard: bool, reshard_root: bool | None) -> None:
        from torch.distributed.fsdp import fully_shard

        blocks = [m for m in network.modules() if type(m).__name__ in self.policy.family.block_classes]
        for part in (*reversed(blocks), network):  # from the inside out
            keep = reshard_root if part is network else reshard
            cut = fully_shard(part, mesh=self.mesh, reshard_after_forward=keep, mp_policy=self._precision())
            cut.set_force_sum_reduction_for_comms(True)  # some versions of gloo take an average for a sum

    def _precision(self) -> Any:
        """fully_shard's MixedPrecisionPolicy: half precision travels and computes, fp32 adds gradients up.

        The weights are those that autocast would make; its own casts of whole weights would be kept for the
        backward pass. Inputs are left to autocast, which knows what needs fp32.
        """
        from torch.distributed.fsdp import MixedPrecisionPolicy

        if self.policy.dtype not in HALF:
            return MixedPrecisionPolicy()
        return MixedPrecisionPolicy(
            param_dtype=self.policy.dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )

    @torch.no_grad()
    def clip(self, parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
        """Scale all gradients so that their norm is at most ``limit``; returns the norm before, a scalar.

        As torch's clip_grad_norm_, with one sum over the processes in place of one for each parameter.
        """
        parts = [local(p.grad) for p in parameters if p.grad is not None]
        square = torch.nn.utils.get_total_norm(parts).square()
        norm: Tensor = self.reduce(square, "sum").sqrt()
        torch._foreach_mul_(parts, (limit / (norm + 1e-6)).clamp(max=1.0))
        return norm

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, the policy of the main process makes pictures and exports with whole networks.

        All processes must enter, for gathering is a collective; inside they are free, and the others must not
        use the policy. Training goes on with the shards.
        """
        networks = [self._gathered(n, f) for n, f in zip(self.policy.networks, self.frames, strict=True)]
        if not self.main:
            yield
            return
        with self.policy.standing_in(networks):
            yield

    @torch.no_grad()
    def _gathered(self, network: nn.Module, empty: nn.Module) -> nn.Module:
        """Whole copy of ``network`` on the main process; the others keep nothing."""
        state: dict[str, Tensor] = {}
        for name, parameter in network.named_parameters():
            full = whole(parameter)
            if self.main:
                state[name] = full
        filled = deepcopy(empty)
        filled.load_state_dict(state, strict=False, assign=True)  # buffers are there already
        return filled


def frame(network: nn.Module) -> nn.Module:
    """Copy of a network with its buffers, whose parameters hold nothing (meta device)."""
    empty: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for p in network.parameters()
    }
    return deepcopy(network, empty)


def shard(policy: Policy, accelerator: Accelerator) -> Shards | None:
    """Cut up the policy's networks where accelerate's launcher asked for FSDP; None: they stay whole."""
    options = fsdp_options()
    if options is None or not torch.distributed.is_initialized():
        return None
    return Shards(policy, accelerator, reshard=bool(options.reshard_after_forward))
