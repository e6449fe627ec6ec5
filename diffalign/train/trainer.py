"""The training loop: one for every objective, model and data kind."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from diffalign.config import ConfigError
from diffalign.data.loader import Batch
from diffalign.device import send
from diffalign.diffusion.corrupt import draw_seed
from diffalign.objectives import Denoised
from diffalign.policy import Policy
from diffalign.train.checkpoint import CheckpointError
from diffalign.train.conditions import Conditioner
from diffalign.train.config import TrainConfig
from diffalign.train.core import Core, StepHook
from diffalign.train.forward import Forward
from diffalign.train.metrics import StepFigures
from diffalign.train.optim import learning_rate, set_learning_rate
from diffalign.train.raters import parameter_groups
from diffalign.train.robust import GroupWeights
from diffalign.train.run import RunFolder
from diffalign.train.terms import Prefixed

log = logging.getLogger(__name__)


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


class Trainer(Core):
    """Runs optimizer steps of one objective on one policy; knows nothing of files but its run folder."""

    must_agree = (
        "objective",
        "terms",
        "space",
        "data.reverse",
        "policy.long_prompts",
        "policy.adapter",
        "policy.reference",
        "optim.name",
        "people",
    )

    def __init__(
        self,
        config: TrainConfig,
        policy: Policy,
        loader: Loader,
        accelerator: Accelerator,
        run: RunFolder,
        people: Conditioner | None = None,
        groups: GroupWeights | None = None,
    ) -> None:
        """Prepare optimizer, reference and averages; see TrainConfig for the options.

        ``people`` are those that ``make_conditioner`` attached to the policy, where the recipe has them;
        ``groups`` weigh them.
        """
        super().__init__(config, policy, accelerator, run)
        self.config: TrainConfig = config
        self.loader, self.objective = loader, config.objective
        self.clock = Clock()
        self._batches: Iterator[Batch] | None = None
        if self.shards is not None and config.data.reference_errors is not None:
            raise ConfigError(
                "data.reference_errors does not go with FSDP, whose reference pass all must make"
            )
        if self.shards is not None and people is not None:
            raise ConfigError("people do not go with FSDP, whose layers compute nothing outside of the model")
        self.people, self.groups_of_people = people, groups
        self.forward = Forward(config, policy, accelerator, self._enter, self._averaged, people)

    # ------------------------------------------------------------------ the loop

    def fit(
        self, on_step: StepHook | None = None, on_interval: Callable[[Trainer], None] | None = None
    ) -> None:
        """See Core."""
        super().fit(on_step, on_interval)
        self.clock.enter("")

    def _advance(self) -> tuple[dict[str, Tensor], list[int]]:
        """One step over ``accumulate`` parts: sum(weight * loss) / sum(weight) over parts and processes."""
        self.clock.enter("data")
        parts = [self._next_batch() for _ in range(self.config.accumulate)]
        robust = self.groups_of_people
        parts = parts if robust is None else robust.weighed(parts, self._reduce_sum)
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
            out |= {} if robust is None else robust.step(self._reduce_sum)
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
            if i == 0 and self.groups_of_people is not None:
                of = send(self.groups_of_people.groups(batch).to(loss.dtype), loss.device)
                self.groups_of_people.saw(loss, weight, term.objective.units(denoised, of).long())
            prefix = f"{i}/" if i else ""
            figures.add(f"{prefix}loss", loss, weight > 0)
            figures.add_all({f"{prefix}{k}": v for k, v in metrics.items()}, share, weight > 0)
        parts += self._of_people(figures)
        self.clock.enter("policy")
        # DDP averages gradients over processes, hence the factor; accelerate divides by nothing at
        # accumulation 1
        self.accelerator.backward(torch.stack(parts).sum() * self.accelerator.num_processes)

    def _of_people(self, figures: StepFigures) -> list[Tensor]:
        """Losses of the user tokens alone: a mean over the parts and processes of the step."""
        for name, loss in self.forward.losses.items():
            figures.add(name, loss[None])
        parts = self.config.accumulate * self.accelerator.num_processes
        return [loss / parts for loss in self.forward.losses.values()]

    def _state_of(self, term: int) -> MutableMapping[str, Tensor]:
        """Running statistics of one term; those of the objective have no prefix."""
        return Prefixed(self.state, f"{term}/") if term else self.state

    def _enter(self, phase: str) -> None:
        self.clock.enter(phase)  # whichever clock a benchmark has set

    def _next_batch(self) -> Batch:
        if self._batches is None:
            self._batches = iter(self.loader)
        return next(self._batches)

    # ------------------------------------------------------------------ small parts

    def groups(self) -> list[dict[str, Any]]:
        """See Core."""
        config, users = self.config, self.policy.users
        if users is None or not isinstance(config, TrainConfig) or config.people is None:
            return super().groups()
        return parameter_groups(users, list(self.parameters.values()), config.people, config.optim)

    def export_further(self) -> Path | None:
        """See Core."""
        return None if self.people is None else self.people.export(self.run.export)

    def shown(self) -> dict[str, Tensor]:
        """See Core."""
        people = self.people
        if people is None or self.config.people is None:
            return {}
        return {name: people.tokens(name) for name in self.config.people.show}

    def further_state(self) -> dict[str, Tensor]:
        """See Core."""
        return {} if self.groups_of_people is None else {"groups": self.groups_of_people.q}

    def load_further(self, state: Mapping[str, Tensor]) -> None:
        """See Core."""
        if self.groups_of_people is None:
            super().load_further(state)
            return
        own, found = self.groups_of_people.q, state.get("groups")
        if found is None or found.shape != own.shape:
            raise CheckpointError(
                f"the checkpoint has weights of {0 if found is None else len(found)} groups of people, and "
                f"these data have {len(own)}: resume with the data of that run"
            )
        self.groups_of_people.q = found.to(own)

    def position(self) -> dict[str, Any]:
        """See Core."""
        return self.loader.state_dict()

    def go_to(self, position: Mapping[str, Any]) -> None:
        """See Core."""
        self.loader.load_state_dict(dict(position))

    def save(self) -> None:
        """See Core."""
        self.forward.flush()
        super().save()

    def _total_weights(self, parts: Sequence[Batch]) -> Tensor:
        """(terms,) sums of the weights of this process's units."""
        sums = [[self.forward.unit_weights(t, p).sum() for p in parts] for t in self.forward.terms]
        return torch.stack([torch.stack(own).sum() for own in sums])

    def _time_share(self, t: Tensor) -> Tensor:
        return t if self.policy.process.is_flow else t / self.policy.process.steps


def batch_weight(denoised: Denoised) -> Tensor:
    """(N,) weights that the trainer gave the rows."""
    return torch.ones_like(denoised.error) if denoised.weight is None else denoised.weight
