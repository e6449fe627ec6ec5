"""Metrics without a host sync, and a watch over the health of a run."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

Row = dict[str, float]


class DivergedError(RuntimeError):
    """A loss or gradient became NaN or infinite."""


@dataclass(kw_only=True)
class Pending:
    """One step's figures on their way to the host."""

    step: int
    names: Sequence[str]
    values: Tensor
    samples: Sequence[int]
    event: torch.cuda.Event | None


class LateReader:
    """Hands out a step's figures one step later, so that the training step never waits for the device."""

    def __init__(self) -> None:
        """Start empty."""
        self._pending: Pending | None = None

    def push(
        self, step: int, figures: Mapping[str, Tensor], samples: Sequence[int]
    ) -> tuple[int, Row, Sequence[int]] | None:
        """Send off this step's scalar tensors; return the step before as (step, figures, samples of its
        batch).
        """
        previous = self.flush()
        values = torch.stack([v.detach() for v in figures.values()])  # as they are: MPS has no float64
        event = None
        if values.is_cuda:
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            host.copy_(values, non_blocking=True)
            values, event = host, torch.cuda.Event()
            event.record()
        self._pending = Pending(step=step, names=list(figures), values=values, samples=samples, event=event)
        return previous

    def flush(self) -> tuple[int, Row, Sequence[int]] | None:
        """Wait for what is on its way, if anything."""
        pending, self._pending = self._pending, None
        if pending is None:
            return None
        if pending.event is not None:
            pending.event.synchronize()
        row = dict(zip(pending.names, pending.values.tolist(), strict=True))
        return pending.step, row, pending.samples


@dataclass(kw_only=True)
class Monitor:
    """Warns of runs that blow up or quietly do nothing; stops at NaN.

    The thresholds are habits, not laws: both gaps above ``gap_share`` of the error for ``patience`` steps,
    accuracy
    within 0.02 of one half for ``stuck`` steps, a gradient norm ``spike`` times the running median.
    """

    patience: int = 20
    stuck: int = 300
    spike: float = 10.0
    gap_share: float = 0.05
    gradients: deque[float] = field(default_factory=lambda: deque(maxlen=50))
    rising: int = 0
    flat: int = 0
    skipped: int = 0
    """Steps in a row that the loss scaler of fp16 left out."""
    one_sided: int = 0
    """Steps so far in which a batch held likes only, or dislikes only."""
    warnings: list[str] = field(default_factory=list)

    def watch(self, step: int, row: Row, samples: Sequence[int]) -> None:
        """Look at one step's figures.

        Raises:
            DivergedError: the loss or the gradient norm is not finite; names the step and the batch. A step
                that the loss scaler left out is pardoned, ``patience`` of them in a row are not.
        """
        self.skipped = self.skipped + 1 if row.get("skipped") else 0
        if 0 < self.skipped < self.patience:
            return  # fp16 looks for its scale by overflowing, and nothing was learnt from this step
        bad = [k for k in ("loss", "grad_norm") if not math.isfinite(row.get(k, 0.0))]
        if bad:
            raise DivergedError(
                f"step {step}: {' and '.join(bad)} not finite, batch of records {list(samples)[:16]}; "
                f"the last checkpoint"
                " is kept. Lower optim.learning_rate, or use precision bf16 instead of fp16, and --resume"
            )
        self._watch_gaps(step, row)
        self._watch_accuracy(step, row)
        self._watch_gradient(step, row)
        self._watch_labels(step, row)

    def state_dict(self) -> dict[str, Any]:
        """Counts so far, as JSON knows them."""
        counts = {k: getattr(self, k) for k in ("rising", "flat", "skipped", "one_sided")}
        return counts | {"gradients": list(self.gradients), "warnings": list(self.warnings)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the counts of a checkpoint."""
        self.rising, self.flat, self.skipped = state["rising"], state["flat"], state["skipped"]
        self.one_sided = state.get("one_sided", 0)  # checkpoints of earlier versions lack it
        self.gradients.clear()
        self.gradients.extend(state["gradients"])
        self.warnings[:] = state["warnings"]

    def _watch_gaps(self, step: int, row: Row) -> None:
        if not {"win_gap", "lose_gap", "error_win"} <= set(row):
            return
        floor = self.gap_share * row["error_win"]
        self.rising = self.rising + 1 if min(row["win_gap"], row["lose_gap"]) > floor else 0
        if self.rising == self.patience:
            self._warn(
                step,
                "both errors rise above the reference: the policy forgets; raise beta or lower the "
                "learning rate",
            )

    def _watch_accuracy(self, step: int, row: Row) -> None:
        if "accuracy" not in row:
            return
        self.flat = self.flat + 1 if abs(row["accuracy"] - 0.5) < 0.02 else 0
        if self.flat == self.stuck:
            self._warn(
                step,
                "the implicit accuracy stays at one half: labels may be noise, or the learning rate too low",
            )

    def _watch_gradient(self, step: int, row: Row) -> None:
        norm = row.get("grad_norm")
        if norm is None:
            return
        typical = sorted(self.gradients)[len(self.gradients) // 2] if len(self.gradients) >= 20 else math.inf
        if norm > self.spike * typical:
            self._warn(step, f"the gradient norm {norm:.3g} is {norm / typical:.0f} times the usual")
        self.gradients.append(norm)

    def _watch_labels(self, step: int, row: Row) -> None:
        """Name batches whose estimate of the KL distance is that of one kind of label; not every one."""
        if not row.get("one_sided"):
            return
        self.one_sided += 1
        if self.one_sided in (1, 10, 100, 1000, 10_000):
            missing = (
                "liked" if not row.get("likes") else "disliked" if not row.get("dislikes") else "one kind of"
            )
            self._warn(
                step,
                f"a batch has no {missing} image (the {self.one_sided}. time), which takes most of the "
                "signal away: raise batch, lower accumulate, draw both kinds, or take kl: zero",
            )

    def _warn(self, step: int, text: str) -> None:
        self.warnings.append(f"step {step}: {text}")
        log.warning("step %d: %s", step, text)
