"""What every trainer has: weights, optimizer, averages, and the state that a run goes on from."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from diffalign.policy import Policy
from diffalign.train.blocks import RunConfig
from diffalign.train.checkpoint import (
    Checkpoint,
    CheckpointError,
    check_fits,
    check_same_run,
    pack_optimizer,
    prune,
    save_checkpoint,
    set_aside,
    unpack_optimizer,
)
from diffalign.train.config import recipe_text
from diffalign.train.ema import Ema
from diffalign.train.monitor import LateReader, Monitor
from diffalign.train.optim import build_optimizer
from diffalign.train.random_state import put_random_state, random_tensors, random_values
from diffalign.train.run import RunFolder
from diffalign.train.shard import gathered, put, shard

log = logging.getLogger(__name__)

StepHook = Callable[[int, dict[str, float]], None]
"""Gets each step's figures, one step late, on the main process."""


class Core(ABC):
    """Policy, optimizer, running averages and statistics of a run, and their checkpoints."""

    must_agree: ClassVar[tuple[str, ...]]
    """Options that a resumed run cannot change; others, such as steps and the learning rate, it can."""

    def __init__(self, config: RunConfig, policy: Policy, accelerator: Accelerator, run: RunFolder) -> None:
        """Prepare optimizer and averages; see RunConfig for the options."""
        self.config: RunConfig = config
        self.policy, self.run, self.accelerator = policy, run, accelerator
        self.base = policy.base_id()  # of the start: after training, full weights are others
        self.shards = shard(policy, accelerator)
        self.parameters = policy.trainable()
        self.optimizer = build_optimizer(self.groups(), config.optim)
        self.ema = Ema(self.parameters, config.ema) if config.ema else None
        self.state: dict[str, Tensor] = {}
        self.step = 0
        self.stopped = False
        """Ends the run after this step, with a checkpoint."""
        self.monitor = Monitor()
        self.best: dict[str, Any] = {}
        self._late = LateReader()
        self._took: dict[int, float] = {}
        self.recipe: dict[str, Any] = yaml.safe_load(recipe_text(config))
        if self.shards is None:
            policy.wrapped, self.optimizer = accelerator.prepare(policy.denoiser, self.optimizer)

    # ------------------------------------------------------------------ the loop

    def fit(self, on_step: StepHook | None = None, on_interval: Callable[[Self], None] | None = None) -> None:
        """Train to ``config.steps``.

        Args:
            on_step: gets each step's figures, one step late, on the main process.
            on_interval: called after every step on all processes; may name the step the best so far, or end
                the run (``stopped``).

        Raises:
            DivergedError: the loss or gradient is not finite; the last good checkpoint is kept.
            CheckpointError: a checkpoint cannot be written.
        """
        self.policy.denoiser.train()
        while self.step < self.config.steps and not self.stopped:
            started = time.perf_counter()
            figures, samples = self._advance()
            self.step += 1
            self._took[self.step] = time.perf_counter() - started
            self._report(self._late.push(self.step, figures, samples), on_step)
            if on_interval is not None:
                on_interval(self)  # before the checkpoint, which is to know whether this step is the best
            if self._save_is_due():
                self._report(self._late.flush(), on_step)  # a checkpoint is written only of a healthy step
                self.save()

    # ------------------------------------------------------------------ what subclasses add

    @abstractmethod
    def _advance(self) -> tuple[dict[str, Tensor], list[int]]:
        """One step: its scalar figures, still on the device, and the numbers of what it saw."""

    @abstractmethod
    def position(self) -> dict[str, Any]:
        """Where the data are, as JSON knows it."""

    @abstractmethod
    def go_to(self, position: Mapping[str, Any]) -> None:
        """Go to a position."""

    def groups(self) -> list[dict[str, Any]]:
        """Groups of the optimizer, of all ``parameters``."""
        return [{"params": list(self.parameters.values())}]

    def export_further(self) -> Path | None:
        """Write what else the run gives out, and return where; for the main process."""
        return None

    def shown(self) -> dict[str, Tensor]:
        """Tokens of those people, by name, for whom pictures are made besides."""
        return {}

    def further_state(self) -> dict[str, Tensor]:
        """Tensors of a subclass, by name."""
        return {}

    def load_further(self, state: Mapping[str, Tensor]) -> None:
        """Take over a checkpoint's ``further_state``.

        Raises:
            CheckpointError: it does not fit.
        """
        if state:
            raise CheckpointError(f"the checkpoint holds {min(state)}, of which this run knows nothing")

    # ------------------------------------------------------------------ small parts

    def _report(
        self, late: tuple[int, dict[str, float], Sequence[int]] | None, on_step: StepHook | None
    ) -> None:
        if late is None:
            return
        step, row, samples = late
        if self.accelerator.is_main_process:
            self.run.append(step, row, {"seconds": self._took.pop(step, 0.0)})
        self.monitor.watch(step, row, samples)
        if on_step is not None and self.accelerator.is_main_process:
            on_step(step, row)

    def _averaged(self) -> AbstractContextManager[None]:
        return self.ema.swapped() if self.ema is not None else nullcontext()

    def _save_is_due(self) -> bool:
        """Whether this step is the last, the best so far, or one of every few; the same on all processes."""
        every = self.config.checkpoint_every
        chosen = self.step in (self.config.steps, self.best.get("step"))
        return chosen or self.stopped or bool(every and self.step % every == 0)

    def _reduce_sum(self, value: Any) -> Tensor:
        reduced: Tensor = self.accelerator.reduce(value, "sum")
        return reduced

    def _reduce_mean(self, value: Tensor) -> Tensor:
        reduced: Tensor = self.accelerator.reduce(value, "mean")
        return reduced

    def _clip(self) -> Tensor:
        limit = self.config.optim.clip_norm or float("inf")
        if self.shards is not None:
            return self.shards.clip(self.parameters.values(), limit)
        norm = self.accelerator.clip_grad_norm_(self.parameters.values(), limit)
        return norm if isinstance(norm, Tensor) else torch.tensor(float(norm))

    # ------------------------------------------------------------------ state

    def checkpoint(self) -> Checkpoint:
        """Everything that the next step depends on.

        All processes take part; where the model is cut up, only that of the main process holds its tensors.
        """
        tensors, scalars = pack_optimizer(_plain(self.optimizer), self.parameters)
        state = {f"policy/{k}": p.detach() for k, p in self.parameters.items()}
        state |= {f"optim/{k}": v for k, v in tensors.items()}
        state |= {f"objective/{k}": v for k, v in self.state.items()}
        state |= {f"reference/{k}": v for k, v in self.policy.opponent.state().items()}
        state |= {f"further/{k}": v for k, v in self.further_state().items()}
        if self.ema is not None:
            state |= {f"ema/{k}": v for k, v in self.ema.state().items()}
        state = gathered(state, keep=self.accelerator.is_main_process)
        tensors_of, values_of = self._random_states()
        state |= {f"rng/{i}/{k}": v for i, own in enumerate(tensors_of) for k, v in own.items()}
        scaler = self.accelerator.scaler
        meta = {
            "optim": scalars,
            "loader": self.position(),
            "ema_steps": self.ema.steps if self.ema else 0,
            "best": self.best,
            "processes": self.accelerator.num_processes,
            "random": values_of,
            "scaler": None if scaler is None else scaler.state_dict(),
            "monitor": self.monitor.state_dict(),
            "base": self.base,
            "recipe": self.recipe,
        }
        return Checkpoint(step=self.step, tensors=state, meta=meta)

    @contextmanager
    def exported_weights(self) -> Iterator[None]:
        """Inside, the policy has the weights that the run gives out: the average where there is one.

        All processes enter; inside, a model that is cut up is whole, and of use, on the main process only.
        """
        with self._averaged(), self.shards.whole() if self.shards is not None else nullcontext():
            yield

    def save(self) -> None:
        """Write a checkpoint (main process) and drop those beyond the retention."""
        checkpoint = self.checkpoint()
        if self.accelerator.is_main_process:
            save_checkpoint(self.run.checkpoints, checkpoint)
            prune(self.run.checkpoints, self.config.keep_checkpoints, self.best.get("checkpoint"))
        self.accelerator.wait_for_everyone()

    @torch.no_grad()
    def restore(self, checkpoint: Checkpoint, where: str) -> None:
        """Go on from a checkpoint.

        Raises:
            CheckpointError: it belongs to another model or another run.
        """
        check_fits(checkpoint, self.parameters, where)
        check_same_run(checkpoint, self.recipe, self.base, where, self.must_agree)
        meta = checkpoint.meta
        for key, value in checkpoint.part("policy").items():
            put(self.parameters[key], value)
        unpack_optimizer(_plain(self.optimizer), self.parameters, checkpoint.part("optim"), meta["optim"])
        self._restore_average(checkpoint, where)
        try:
            self.policy.opponent.load(checkpoint.part("reference"))
        except ValueError as error:
            raise CheckpointError(f"{where} belongs to another run: {error}") from error
        if self.accelerator.scaler is not None and meta["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(meta["scaler"])
        self.state.update({k: v.to(self.accelerator.device) for k, v in checkpoint.part("objective").items()})
        self.go_to(meta["loader"])
        self.load_further(checkpoint.part("further"))
        self.monitor.load_state_dict(meta["monitor"])
        self.step, self.best = checkpoint.step, self._best_of(checkpoint)
        self._restore_random(checkpoint)
        if self.accelerator.is_main_process:
            self._forget_later()

    def _restore_average(self, checkpoint: Checkpoint, where: str) -> None:
        saved = checkpoint.part("ema")
        if bool(saved) != (self.ema is not None):
            raise CheckpointError(
                f"{where} belongs to another run: it {'has' if saved else 'lacks'} averaged weights, and ema "
                f"is {self.config.ema} here; resume with the recipe of that run (config.yaml beside it)"
            )
        if self.ema is not None:
            self.ema.load(saved, checkpoint.meta["ema_steps"])

    def _best_of(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Best step before the checkpoint, unless its weights were deleted when a later one beat it."""
        best: dict[str, Any] = checkpoint.meta["best"]
        if best and not (self.run.checkpoints / best["checkpoint"]).exists():
            log.warning("%s, the best before step %d, is gone", best["checkpoint"], checkpoint.step)
            return {}
        return best

    def _restore_random(self, checkpoint: Checkpoint) -> None:
        processes = checkpoint.meta["processes"]
        if processes != self.accelerator.num_processes:
            log.warning(
                "the checkpoint is of %d processes, this run has %d: dropout and user code draw other random "
                "numbers than they would have (noise and timesteps do not depend on it)",
                processes,
                self.accelerator.num_processes,
            )
            return
        i = self.accelerator.process_index
        put_random_state(checkpoint.part(f"rng/{i}"), checkpoint.meta["random"][i], self.accelerator.device)

    def _forget_later(self) -> None:
        self.run.forget_after(self.step)
        moved = set_aside(self.run.checkpoints, self.step)
        if moved is not None:
            log.warning("checkpoints after step %d were moved to %s", self.step, moved)

    def _random_states(self) -> tuple[list[dict[str, Tensor]], list[dict[str, Any]]]:
        """Random states of every process, in order of rank."""
        own = [(random_tensors(self.accelerator.device), random_values())]
        every: list[tuple[dict[str, Tensor], dict[str, Any]]] = gather_object(own)
        return [tensors for tensors, _ in every], [values for _, values in every]


def _plain(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside accelerate's wrapper."""
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner
