"""Training of the tiny pipelines of the shapes world from nothing; driven by training/pretrain_shapes.py."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffalign.world.obedience import NOTES, note
from diffalign.world.stages import Stage, build_stage

log = logging.getLogger(__name__)

MOMENTS = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")
"""What AdamW and Muon keep for a weight."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """When to stop: ``steps`` in all (0 = the stage's default) and ``minutes`` of this run (0 = no limit);
    how to compute.
    """

    steps: int = 0
    minutes: float = 0
    threads: int = 0
    compile: bool = False


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 100 steps, then cosine to a fiftieth."""
    warm = min(1.0, (step + 1) / 100)
    return peak * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))))


class Loop:
    """The loop that all stages share: schedule, exponential average, resume, log."""

    def __init__(self, stage: Stage, work: Path, out: Path, budget: Budget) -> None:
        """Go on from the resume state in ``work``, if there is one."""
        self.stage, self.work, self.out, self.budget = stage, work, out, budget
        self.steps = budget.steps or stage.steps
        self.weights = {k: p for k, p in stage.modules.named_parameters() if p.requires_grad}
        self.average = {k: p.detach().clone() for k, p in self.weights.items()}
        self.optimizers = stage.optimizers()
        self.step, self.seconds = 0, 0.0
        self._resume()

    @property
    def state_file(self) -> Path:
        """Resume state of this stage."""
        return self.work / f"{self.stage.name}.safetensors"

    def run(self) -> None:
        """Train until the budget is spent, then save what users load."""
        start = last = time.monotonic()
        while self.step < self.steps:
            value = self._one_step()
            now = time.monotonic()
            self.seconds, spent_now = self.seconds + now - last, now - start
            last = now
            if self.step % 100 == 0:
                self._log({"loss": value, "seconds": self.seconds})
            spent = bool(self.budget.minutes) and spent_now > 60 * self.budget.minutes
            if self.step % 250 == 0 or spent or self.step == self.steps:
                self._save(self.seconds)
            if self.step % 1000 == 0 or spent or self.step == self.steps:
                self._publish()
            if spent:
                break

    def _one_step(self) -> float:
        for group in (g for o in self.optimizers for g in o.param_groups):
            group["lr"] = learning_rate(self.step, self.steps, group.setdefault("peak", group["lr"]))
        torch.manual_seed(self.step)
        loss = self.stage.loss(np.random.default_rng([self.step, 17]))
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        decay = min(0.999, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(
            list(self.average.values()), [p.detach() for p in self.weights.values()], 1 - decay
        )
        return float(loss.detach())

    def _log(self, row: dict[str, float]) -> None:
        line = json.dumps({"stage": self.stage.name, "step": self.step} | row)
        print(line, flush=True)
        with (self.work / "log.jsonl").open("a") as file:
            file.write(line + "\n")

    def _publish(self) -> None:
        raw = {k: p.detach().clone() for k, p in self.weights.items()}
        self._load(self.average)
        figures = self.stage.measure()
        self._log(figures)
        self.stage.export(self.out)
        self._load(raw)
        so_far = {"step": self.step, "of": self.steps, "seconds": round(self.seconds)}
        note(self.out, self.stage.name, so_far | figures)  # so that a new checkout can go on

    @torch.no_grad()
    def _load(self, values: dict[str, Tensor]) -> None:
        for k, p in self.weights.items():
            p.copy_(values[k])

    def _save(self, seconds: float) -> None:
        state = {f"weight/{k}": p.detach() for k, p in self.weights.items()}
        state |= {f"average/{k}": p for k, p in self.average.items()}
        for optimizer, k, p in self._owned():
            state |= {f"moment/{name}/{k}": v for name, v in optimizer.state[p].items()}
        partial = self.state_file.with_suffix(".partial")
        save_file(state, partial, metadata={"step": str(self.step), "seconds": str(seconds)})
        os.replace(partial, self.state_file)

    def _resume(self) -> None:
        if not self.state_file.exists():
            self._resume_from_export()
            return
        state = load_file(self.state_file)
        with safe_open(self.state_file, "pt") as file:
            metadata = file.metadata()
        self.step, self.seconds = int(metadata["step"]), float(metadata["seconds"])
        self._load({k: state[f"weight/{k}"] for k in self.weights})
        self.average = {k: state[f"average/{k}"] for k in self.weights}
        for optimizer, k, p in self._owned():
            names = [n for n in MOMENTS if f"moment/{n}/{k}" in state]
            optimizer.state[p] = {n: state[f"moment/{n}/{k}"] for n in names}

    def _owned(self) -> Iterator[tuple[torch.optim.Optimizer, str, nn.Parameter]]:
        """Every weight with its name and the optimizer that holds it."""
        names = {id(p): k for k, p in self.weights.items()}
        for optimizer in self.optimizers:
            for p in (p for group in optimizer.param_groups for p in group["params"]):
                yield optimizer, names[id(p)], p

    def _resume_from_export(self) -> None:
        """Without resume state go on from the exported average, if there is one; the moments start anew."""
        step = noted_step(self.out, self.stage.name)
        if not step:
            return
        log.warning("no resume state in %s: going on from %s at step %d", self.work, self.out, step)
        self.stage.restore(self.out)
        self.step = step
        self.average = {k: p.detach().clone() for k, p in self.weights.items()}


def noted_step(out: Path, name: str) -> int:
    """Step up to which the exported weights of a stage were trained; 0 where there are none."""
    file = out / NOTES
    notes = json.loads(file.read_text()) if file.exists() else {}
    return int(notes.get(name, {}).get("step", 0))


def pretrain(name: str, *, work: Path, out: Path, budget: Budget) -> None:
    """Train one stage ("vae", "decoder", "unet", "dit"), going on from ``work``; users load from ``out``."""
    if budget.threads:
        torch.set_num_threads(budget.threads)
    work.mkdir(parents=True, exist_ok=True)
    stage = build_stage(name, work, out)
    if budget.compile and stage.busiest:
        setattr(stage, stage.busiest, torch.compile(getattr(stage, stage.busiest)))
    Loop(stage, work, out, budget).run()
