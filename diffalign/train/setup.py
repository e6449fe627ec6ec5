"""Setting up a run: processes and precision, the policy on its device, the run's folder."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator

from diffalign.config import ConfigError
from diffalign.policy import Policy, load_policy
from diffalign.policy.precision import DTYPES
from diffalign.train.blocks import RunConfig
from diffalign.train.checkpoint import CheckpointError, newest
from diffalign.train.config import recipe_text
from diffalign.train.run import RunFolder, new_run
from diffalign.train.shard import check_distribution, fsdp_options

PATIENCE = timedelta(hours=24)
"""How long processes wait for one another."""


def make_accelerator(config: RunConfig) -> Accelerator:
    """Accelerator with the recipe's precision; accumulation is the trainer's own.

    Raises:
        ConfigError: the batch cannot be shared by the processes, or they share the model in a way that the
            trainer does not know.
    """
    from accelerate.state import AcceleratorState
    from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs, set_seed

    AcceleratorState._reset_state()  # an earlier run of this Python process may have had another precision
    mixed = config.precision if config.precision in ("bf16", "fp16") else "no"
    cpu = not (
        torch.cuda.is_available() or torch.backends.mps.is_available()
    )  # else processes would not meet
    if cpu and mixed == "fp16":
        raise ConfigError(
            "precision is fp16, which needs a GPU, and there is none: use precision=bf16 or fp32"
        )
    accelerator = Accelerator(
        mixed_precision=mixed,
        cpu=cpu,
        # given here, or a variable of accelerate's launcher would divide the gradients once more
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        # encoding and validation run on one process while the others wait, for longer than NCCL's 10 minutes
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    check_distribution(accelerator.distributed_type, config, fsdp_options())
    config.check_processes(accelerator.num_processes)
    torch.set_num_threads(cpu_threads(config.threads, accelerator.num_processes))
    set_seed(config.seed)
    return accelerator


def cpu_threads(asked: int, processes: int) -> int:
    """CPU threads of this process: as asked, as set up, or (under accelerate launch) its share of the cores.

    accelerate launch sets one thread where the user says nothing, which leaves a laptop's other cores idle.
    """
    if asked:
        return asked
    if os.environ.get("OMP_NUM_THREADS") == "1" and "ACCELERATE_MIXED_PRECISION" in os.environ:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
        return max(1, (os.cpu_count() or 1) // here)
    return torch.get_num_threads()


def make_policy(config: RunConfig, device: torch.device) -> Policy:
    """Load the policy onto the device, in the recipe's precision (trained weights stay in fp32 at least)."""
    policy = load_policy(
        config.policy.model,
        config.policy.adapter,
        text_length=config.policy.text_length,
        allow_download=config.policy.allow_download,
    )
    policy.set_long_prompts(config.policy.long_prompts)
    policy.to(device, DTYPES[config.precision])
    if config.policy.attention is not None:
        set_backend(policy, config.policy.attention)
    if config.policy.gradient_checkpointing:
        policy.denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
    return policy


def set_backend(policy: Policy, name: str) -> None:
    """Give the policy's attention layers a backend.

    Raises:
        ConfigError: there is none of this name, it cannot train on the policy's device, or the model's layers
            take none.
    """
    from diffalign.attention.backends import why_not
    from diffalign.attention.install import set_attention

    try:
        reason = why_not(name, policy.device)
        if reason:
            raise RuntimeError(f"attention backend {name} cannot be used: {reason}; use auto")
        set_attention(policy.denoiser, name)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"policy.attention: {error}") from error


def claim(config: RunConfig, resume: str | Path | None, accelerator: Accelerator) -> RunFolder:
    """The run's folder, agreed on by all processes; the main one writes the resolved recipe into it."""
    from accelerate.utils import broadcast_object_list

    root = [""]
    if accelerator.is_main_process:
        run = RunFolder(root=run_folder(resume)) if resume else new_run(config.output)
        root = [str(run.root)]
        if not resume:
            run.write_config(recipe_text(config))
    return RunFolder(root=Path(broadcast_object_list(root)[0]))


def run_folder(resume: str | Path) -> Path:
    """The run's folder, of that folder or of one of its checkpoints."""
    path = Path(resume)
    return path.parent.parent if path.parent.name == "checkpoints" else path


def checkpoint_of(path: Path) -> Path:
    """A checkpoint, or the newest one of a run's folder.

    Raises:
        CheckpointError: it holds none.
    """
    if path.parent.name == "checkpoints":
        return path
    found = newest(path / "checkpoints")
    if found is None:
        raise CheckpointError(
            f"{path / 'checkpoints'} holds no whole checkpoint to resume from: start the run anew"
        )
    return found
