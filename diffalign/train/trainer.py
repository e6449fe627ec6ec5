"""The training loop: one for every objective, model and data kind."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from diffalign.config import ConfigError
from diffalign.data.loader import Batch
from diffalign.diffusion.corrupt import draw_seed
from diffalign.objectives import Denoised
from diffalign.policy import Policy
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
from diffalign.train.config import TrainConfig, recipe_text
from diffalign.train.ema import Ema
from diffalign.train.forward import Forward
from diffalign.train.metrics import StepFigures
from diffalign.train.monitor import LateReader, Monitor
from diffalign.train.optim import build_optimizer, learning_rate, set_learning_rate
from diffalign.train.random_state import put_random_state, random_tensors, random_values
from diffalign.train.run import RunFolder
from diffalign.train.shard import gathered, put, shard
from diffalign.train.terms import Prefixed

log = logging.getLogger(__name__)

MUST_AGREE = (
    "objective",
    "terms",
    "space",
    "data.reverse",
    "policy.long_prompts",
    "policy.adapter",
    "policy.reference",
    "optim.name",
)
"""Options that a resumed run cannot change; others, such as steps and the learning rate, it can."""


class Loader(Protocol):
    """What the trainer asks of a loader: endless batches of this process, and an exact position."""

    def __iter__(self) -> Iterator[Batch]:
        """Batches of this process, for ever."""

    def state_dict(self) -> dict[str, Any]:
        """Position after the last batch handed out."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position."""


@dataclass(kw_only=True)
class Clock:
    """Seconds by phase of the step. ``sync`` waits for the device at each change: for benchmarks only."""

    sync: Callable[[], None] | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    phase: str = ""
    since: float = 0.0

    def enter(self, phase: str) -> None:
        """End the running phase and start another one; an empty name stops the clock."""
        if self.sync is not None:
            self.sync()
        now = time.perf_counter()
        if self.phase:
            self.seconds[self.phase] = self.seconds.get(self.phase, 0.0) + now - self.since
        self.phase, self.since = phase, now


StepHook = Callable[[int, dict[str, float]], None]


class Trainer:
    """Runs optimizer steps of one objective on one policy; knows nothing of files but its run folder."""

    def __init__(
        self, config: TrainConfig, policy: Policy, loader: Loader, accelerator: Accelerator, run: RunFolder
    ) -> None:
        """Prepare optimizer, reference and averages; see TrainConfig for the options."""
        self.config, self.policy, self.loader, self.run = config, policy, loader, run
        self.accelerator = accelerator
        self.objective = config.objective
        self.base = policy.base_id()  # of the start: after training, full weights are others
        self.shards = shard(policy, accelerator)
        self.parameters = policy.trainable()
        self.optimizer = build_optimizer(self.parameters.values(), config.optim)
        self.ema = Ema(self.parameters, config.ema) if config.ema else None
        self.state: dict[str, Tensor] = {}
        self.step = 0
        self.clock = Clock()
        self.monitor = Monitor()
        self.best: dict[str, Any] = {}
        self._late = LateReader()
        self._took: dict[int, float] = {}
        self._batches: Iterator[Batch] | None = None
        self.recipe: dict[str, Any] = yaml.safe_load(recipe_text(config))
        if self.shards is None:
            policy.wrapped, self.optimizer = accelerator.prepare(policy.denoiser, self.optimizer)
        if self.shards is not None and config.data.reference_errors is not None:
            raise ConfigError(
                "data.reference_errors does not go with FSDP, whose reference pass all must make"
            )
        self.forward = Forward(config, policy, accelerator, self._enter, self._averaged)

    # ------------------------------------------------------------------ the loop

    def fit(
        self, on_step: StepHook | None = None, on_interval: Callable[[Trainer], None] | None = None
    ) -> None:
        """Train to ``config.steps``.

        Args:
            on_step: gets each step's figures, one step late, on the main process.
            on_interval: called after every step on all processes; may name the step the best so far.

        Raises:
            DivergedError: the loss or gradient is not finite; the last good checkpoint is kept.
            CheckpointError: a checkpoint cannot be written.
        """
        self.policy.denoiser.train()
        while self.step < self.config.steps:
            started = time.perf_counter()
            figures, samples = self._optimizer_step()
            self.step += 1
            self._took[self.step] = time.perf_counter() - started
            self._report(self._late.push(self.step, figures, samples), on_step)
            if on_interval is not None:
                on_interval(self)  # before the checkpoint, which is to know whether this step is the best
            if self._save_is_due():
                self._report(self._late.flush(), on_step)  # a checkpoint is written only of a healthy step
                self.save()
        self.clock.enter("")

    def _save_is_due(self) -> bool:
        """Whether this step is the last, the best so far, or one of every few; the same on all processes."""
        every = self.config.checkpoint_every
        chosen = self.step in (self.config.steps, self.best.get("step"))
        return chosen or bool(every and self.step % every == 0)

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

    def _optimizer_step(self) -> tuple[dict[str, Tensor], list[int]]:
        """One step over ``accumulate`` parts: sum(weight * loss) / sum(weight) over parts and processes."""
        self.clock.enter("data")
        parts = [self._next_batch() for _ in range(self.config.accumulate)]
        totals = self._reduce_sum(self._total_weights(parts))  # (terms,)
        figures, samples = StepFigures(), []
        for i, batch in enumerate(parts):
            last = i == len(parts) - 1
            # shards add up at every part: kept apart, each process would hold the gradient of the whole model
            add_up = last or self.shards is not None
            with nullcontext() if add_up else self.accelerator.no_sync(self.policy.wrapped):
                self._backward(batch, totals, figures)
            samples += batch.sample.tolist()
        self.clock.enter("optimizer")
        norm = self._clip()
        set_learning_rate(self.optimizer, learning_rate(self.step, self.config.steps, self.config.optim))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        out = figures.means(self._reduce_sum)
        skipped = self.accelerator.scaler is not None and not bool(norm.isfinite())
        if self.accelerator.scaler is not None:
            out["skipped"] = torch.full((), float(skipped), device=norm.device)
        if not skipped:
            self.policy.opponent.update()
            if self.ema is not None:
                self.ema.update()
        out["grad_norm"] = norm
        out["learning_rate"] = torch.full((), self.optimizer.param_groups[0]["lr"], device=norm.device)
        return out, samples

    def _backward(self, batch: Batch, totals: Tensor, figures: StepFigures) -> None:
        """Gradient of one part: of each term sum(weight * loss) / total, times the term's own weight."""
        rows, parts = self.forward(batch, draw_seed("step", self.config.seed, self.step)), []
        for i, (term, denoised, total) in enumerate(zip(self.forward.terms, rows, totals, strict=True)):
            loss, metrics = term.objective.loss(denoised, self._reduce_mean, self._state_of(i))  # (U,)
            given = self.forward.row_weights(term, batch_weight(denoised), denoised.role)
            weight = term.objective.units(denoised, given).to(loss.dtype)
            parts.append(term.weight * (weight * loss).sum() / total.clamp_min(1e-12))
            share = term.objective.units(denoised, self._time_share(denoised.t).to(loss.dtype))
            prefix = f"{i}/" if i else ""
            figures.add(f"{prefix}loss", loss, weight > 0)
            figures.add_all({f"{prefix}{k}": v for k, v in metrics.items()}, share, weight > 0)
        self.clock.enter("policy")
        # DDP averages gradients over processes, hence the factor; accelerate divides by nothing at
        # accumulation 1
        self.accelerator.backward(torch.stack(parts).sum() * self.accelerator.num_processes)

    def _state_of(self, term: int) -> MutableMapping[str, Tensor]:
        """Running statistics of one term; those of the objective have no prefix."""
        return Prefixed(self.state, f"{term}/") if term else self.state

    def _enter(self, phase: str) -> None:
        self.clock.enter(phase)  # whichever clock a benchmark has set

    def _averaged(self) -> AbstractContextManager[None]:
        return self.ema.swapped() if self.ema is not None else nullcontext()

    def _next_batch(self) -> Batch:
        if self._batches is None:
            self._batches = iter(self.loader)
        return next(self._batches)

    # ------------------------------------------------------------------ small parts

    def _total_weights(self, parts: Sequence[Batch]) -> Tensor:
        """(terms,) sums of the weights of this process's units."""
        sums = [[self.forward.unit_weights(t, p).sum() for p in parts] for t in self.forward.terms]
        return torch.stack([torch.stack(own).sum() for own in sums])

    def _time_share(self, t: Tensor) -> Tensor:
        return t if self.policy.process.is_flow else t / self.policy.process.steps

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
        if self.ema is not None:
            state |= {f"ema/{k}": v for k, v in self.ema.state().items()}
        state = gathered(state, keep=self.accelerator.is_main_process)
        tensors_of, values_of = self._random_states()
        state |= {f"rng/{i}/{k}": v for i, own in enumerate(tensors_of) for k, v in own.items()}
        scaler = self.accelerator.scaler
        meta = {
            "optim": scalars,
            "loader": self.loader.state_dict(),
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
        self.forward.flush()
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
        check_same_run(checkpoint, self.recipe, self.base, where, MUST_AGREE)
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
        self.loader.load_state_dict(meta["loader"])
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


def batch_weight(denoised: Denoised) -> Tensor:
    """(N,) weights that the trainer gave the rows."""
    return torch.ones_like(denoised.error) if denoised.weight is None else denoised.weight


def _plain(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside accelerate's wrapper."""
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner
