"""Train a scorer on votes: which of two pictures people preferred for a prompt."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from scorers.accuracy import Accuracy, measure
from scorers.digests import items_digest, weights_digest
from scorers.learners import MAX_LOGIT_SCALE, Learner, TowerLearner, learner_for, stack_images
from scorers.train_options import PRESETS, TrainOptions, preset, rate_at
from scorers.train_state import NAME, REPORT, TrainState, check_output, forget_state, load_state, save_state
from scorers.votes import (
    Item,
    Ranking,
    Rating,
    Vote,
    as_votes,
    check_votes,
    prompt_of,
    split_by_prompt,
)

__all__ = [
    "MAX_LOGIT_SCALE", "PRESETS", "Ranking", "Rating", "TrainOptions", "TrainResult", "Vote", "check_votes",
    "evaluate", "fit", "preset", "probabilities", "rate_at", "save_with_report", "split_by_prompt",
    "stack_images", "train_scorer",
]  # fmt: skip

logger = logging.getLogger(__name__)


class Savable(Protocol):
    """A scorer that writes itself in the layout that its ``load`` reads."""

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write weights and what belongs to them into a folder."""
        ...


@dataclass(kw_only=True)
class TrainResult:
    """What a training run found. The scorer holds the weights of ``best_step``."""

    best_step: int
    validation: Accuracy
    steps: int
    history: list[dict[str, float]] = field(default_factory=list)
    """One row per evaluation: step, loss (mean since the last), accuracy."""


def train_scorer(
    scorer: nn.Module,
    votes: Sequence[Item],
    validation: Sequence[Item],
    options: TrainOptions | None = None,
    *,
    accelerator: Any = None,
    resume: Path | None = None,
) -> TrainResult:
    """Train towers, heads and scale; keep the weights of the best validation.

    Args:
        scorer: a scorer with weights, or a Learner around one; changed in place; frozen and in evaluation
            mode again afterwards.
        votes: what to learn from.
        validation: votes on other prompts; they choose the step to keep and the tie threshold.
        options: see TrainOptions.
        accelerator: of accelerate, for several processes or mixed precision; each process gets all votes and
            takes its share of every batch. None trains in this process, where the scorer is.
        resume: folder of the resume state, written at every evaluation; a run that finds one of the same
            votes, pictures, options and starting weights goes on there, with the same results as one that
            never stopped. To know them, every picture is read once beforehand.

    Raises:
        ValueError: no votes, a label outside [0, 1], or a bad picture (the message says which vote); a loss
            that the scorer cannot learn by; a resume state of another run.
        FloatingPointError: the loss became NaN or infinite.
    """
    options = (options or TrainOptions()).of_length(len(votes))
    check_votes(votes, "training votes")
    check_votes(validation, "validation votes")
    learner = learner_for(scorer)
    if options.loss not in learner.losses:
        raise ValueError(
            f"{type(learner.scorer).__name__} cannot learn by the loss {options.loss!r}; it can by "
            f"{', '.join(sorted(learner.losses))}"
        )
    if isinstance(learner, TowerLearner):
        learner.in_batch_negatives = options.in_batch_negatives
    learner.unlock(options)
    try:
        return _Run(learner, votes, validation, options, accelerator, resume).run()
    finally:
        learner.requires_grad_(False)
        learner.eval()


def fit(
    scorer: Any,
    votes: Sequence[Item],
    out: str | Path,
    options: TrainOptions | None = None,
    *,
    accelerator: Any = None,
) -> dict[str, Any]:
    """Split votes by prompt (80 % train, 10 % validation, 10 % held out), train, save, report.

    Args:
        scorer: trained in place and saved into ``out``, where ``scorers.load(name, weights=out)`` reads it.
        votes: at least one for each split.
        out: new folder; gets ``accuracy.json`` beside the weights. A run that was stopped goes on from its
            last evaluation when it is started again.
        options: see TrainOptions.
        accelerator: see ``train_scorer``.

    Returns:
        The content of ``accuracy.json``.

    Raises:
        FileExistsError: the folder holds a trained scorer, or files of something else.
    """
    check_output(Path(out))
    parts = split_by_prompt(votes, (0.8, 0.1, 0.1))
    check_votes(parts[2], "held-out votes")
    before = evaluate(scorer, parts[2], threshold=0.0)
    run = train_scorer(scorer, parts[0], parts[1], options, accelerator=accelerator, resume=Path(out))
    heldout = evaluate(scorer, parts[2], run.validation.threshold)
    more = {"held_out": asdict(heldout), "held_out_before": asdict(before)}
    if accelerator is not None and not accelerator.is_main_process:
        return {**more, **asdict(run)}
    report = save_with_report(getattr(scorer, "scorer", scorer), out, run, more)
    forget_state(Path(out))
    return report


def save_with_report(
    scorer: Savable,
    out: str | Path,
    run: TrainResult,
    more: dict[str, Any],
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Save a scorer with ``accuracy.json`` beside it: how well it does. Returns the content of that file."""
    report = {**more, **asdict(run)}
    # Heads on frozen towers are saved as they are, and their ``save`` takes no precision.
    scorer.save(out) if dtype == torch.float32 else scorer.save(out, dtype)
    temporary = Path(out) / f"{REPORT}.tmp"
    temporary.write_text(json.dumps(report, indent=2) + "\n")
    os.replace(temporary, Path(out) / REPORT)
    return report


def probabilities(scorer: nn.Module, votes: Sequence[Item], batch: int = 64) -> Tensor:
    """(N,) float32 probability, by the scorer, that the first picture of each vote is preferred (CPU)."""
    learner, pairs = learner_for(scorer), as_votes(votes)
    with torch.no_grad():
        found = [
            learner.logit(pairs[i : i + batch]).float().sigmoid().cpu() for i in range(0, len(pairs), batch)
        ]
    return torch.cat(found)


def evaluate(scorer: nn.Module, votes: Sequence[Item], threshold: float | None = None) -> Accuracy:
    """Agreement with votes; ``threshold=None`` chooses the tie threshold on these very votes (validation)."""
    check_votes(votes, "votes")
    pairs = as_votes(votes)
    check_votes(pairs, "votes: none of the rankings orders two pictures, so that there are no votes")
    labels = torch.tensor([float(vote.label) for vote in pairs])
    return measure(probabilities(scorer, pairs), labels, threshold, [vote.prompt for vote in pairs])


class _Run:
    """State of one training run."""

    def __init__(
        self,
        learner: Learner,
        votes: Sequence[Item],
        validation: Sequence[Item],
        options: TrainOptions,
        accelerator: Any,
        resume: Path | None,
    ) -> None:
        self.learner, self.options, self.accelerator, self.resume = learner, options, accelerator, resume
        self.key = "" if resume is None else _key(learner, votes, validation, options)
        self.votes = learner.prepare(learner.items(votes, options.loss))
        self.validation = learner.prepare(as_votes(validation))
        self.counts = Counter(prompt_of(vote) for vote in self.votes)
        self.optimizer = torch.optim.AdamW(
            learner.groups(options), lr=options.learning_rate, betas=options.betas, eps=options.eps
        )
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.model: nn.Module = learner
        if accelerator is not None:
            self.model, self.optimizer = accelerator.prepare(learner, self.optimizer)
        self.rank = 0 if accelerator is None else accelerator.process_index
        self.world = 1 if accelerator is None else accelerator.num_processes
        self.total = torch.zeros(())
        self.best, self.state = self._start()

    def run(self) -> TrainResult:
        """Step until the end or until patience is at its end; leave the best weights in place."""
        for step, rows in enumerate(_batches(len(self.votes), self.options), 1):
            if step <= self.best.steps:
                continue
            self.total += self._step(step, [self.votes[i] for i in rows]).cpu()
            if (step % self.options.eval_every == 0 or step == self.options.steps) and self._stop(step):
                break
        self.learner.load_state_dict(self.state)
        return self.best

    def _step(self, step: int, batch: Sequence[Item]) -> Tensor:
        """One optimiser step on this process's share; gives the loss of the whole batch."""
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * rate_at(step - 1, self.options)
        weight = self._weights(batch)
        # Processes average their gradients; times their number makes it the mean over the whole batch.
        share = self.world / (1.0 if self.options.summed else float(weight.sum()))
        mine = batch[self.rank :: self.world]
        counts = weight[self.rank :: self.world].reciprocal() if self.options.balance_prompts else None
        loss = self._loss(step, mine, counts) * share
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward() if self.accelerator is None else self.accelerator.backward(loss)
        parameters = [p for p in self.learner.parameters() if p.requires_grad]
        torch.nn.utils.clip_grad_norm_(parameters, self.options.clip_norm)
        self.optimizer.step()
        self.learner.tame()
        return loss.detach() if self.accelerator is None else self.accelerator.reduce(loss.detach(), "mean")

    def _loss(self, step: int, items: Sequence[Item], counts: Tensor | None) -> Tensor:
        """Summed loss; dropout is drawn from the step's own seed, so that a resumed run draws the same."""
        if not self.learner.dropout:
            return cast(Tensor, self.model(items, self.options.loss, counts))
        with torch.random.fork_rng():
            torch.manual_seed((self.options.seed << 32) + step * self.world + self.rank)
            self.learner.train()
            return cast(Tensor, self.model(items, self.options.loss, counts))

    def _weights(self, batch: Sequence[Item]) -> Tensor:
        """(B,) weight of each item."""
        if not self.options.balance_prompts:
            return torch.ones(len(batch))
        return 1 / torch.tensor([float(self.counts[prompt_of(item)]) for item in batch])

    def _stop(self, step: int) -> bool:
        """Evaluate, keep what is better, save the resume state; True when it is time to stop."""
        options = self.options
        found = self._evaluate()
        _note(self.best, step, float(self.total) / (step - self.best.steps), found)
        self.total.zero_()
        if _better(found, self.best.validation, options):
            self.best.best_step, self.best.validation, self.state = step, found, _copy(self.learner)
        self._save(step)
        return step - self.best.best_step >= options.patience * options.eval_every

    def _evaluate(self) -> Accuracy:
        """Of the weights as they are, frozen for the time, so that each prompt is encoded once."""
        trained = [p for p in self.learner.parameters() if p.requires_grad]
        self.learner.eval().requires_grad_(False)
        try:
            return evaluate(self.learner, self.validation)
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)

    def _start(self) -> tuple[TrainResult, dict[str, Tensor]]:
        """What the resume state says, or the untrained scorer."""
        saved = None if self.resume is None else load_state(self.resume)
        if saved is None:
            return TrainResult(best_step=0, validation=self._evaluate(), steps=0), _copy(self.learner)
        if saved.report["key"] != self.key:
            raise ValueError(
                f"the resume state in {self.resume} is of other votes, pictures, options or starting "
                f"weights; name another folder, or delete {NAME} there to start again"
            )
        self.learner.load_state_dict(saved.weights)
        self.optimizer.load_state_dict(saved.optimizer)
        found = saved.report["found"]
        best = TrainResult(**{**found, "validation": Accuracy(**found["validation"])})
        return best, saved.best

    def _save(self, step: int) -> None:
        if self.resume is None or self.rank:
            return
        state = TrainState(
            step=step,
            weights=_copy(self.learner),
            best=self.state,
            optimizer=self.optimizer.state_dict(),
            report={"key": self.key, "found": asdict(self.best)},
        )
        save_state(self.resume, state)


def _key(learner: Learner, votes: Sequence[Item], validation: Sequence[Item], options: TrainOptions) -> str:
    """Digest of all that a run hangs on: a state of another run must not be gone on with."""
    parts = [asdict(options), items_digest(votes), items_digest(validation), weights_digest(learner)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _better(found: Accuracy, best: Accuracy, options: TrainOptions) -> bool:
    if options.keep == "loss":
        return found.log_loss < best.log_loss
    return found.accuracy > best.accuracy


def _note(result: TrainResult, step: int, loss: float, found: Accuracy) -> None:
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the loss became {loss} before step {step}; lower learning_rate and start again"
        )
    result.steps = step
    row = {"accuracy": found.accuracy, "decided": found.decided, "log_loss": found.log_loss}
    result.history.append({"step": step, "loss": loss, **row})
    logger.info("step %d: loss %.4f, validation accuracy %.3f", step, loss, found.accuracy)


def _batches(n: int, options: TrainOptions) -> Iterator[list[int]]:
    """Row numbers of each step: every vote once per pass, in a new order each pass, passes joined up."""
    generator = torch.Generator().manual_seed(options.seed)
    rows: list[int] = []
    for _ in range(options.steps):
        while len(rows) < options.batch:
            rows += torch.randperm(n, generator=generator).tolist()
        yield rows[: options.batch]
        rows = rows[options.batch :]


def _copy(learner: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().cpu().clone() for k, v in learner.state_dict().items()}
