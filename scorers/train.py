"""Train a PickScore-type scorer on votes: which of two pictures people preferred for a prompt."""

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
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scorers.accuracy import Accuracy, measure
from scorers.images import ImageLike, to_tensors
from scorers.losses import pickscore_loss
from scorers.pickscore import PickScore

logger = logging.getLogger(__name__)

MAX_LOGIT_SCALE = math.log(100)


class Vote(NamedTuple):
    """One comparison. A plain tuple in this order will do."""

    first: ImageLike
    """Picture in any form of ``scorers.images``; files and lazy sources are read when their batch comes."""
    second: ImageLike
    prompt: str
    label: float
    """Probability in [0, 1] that the first picture is preferred; 0.5 is a tie."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How to train; the defaults are those of the published PickScore (ViT-H, 4000 steps of 128 pairs)."""

    steps: int = 4000
    batch: int = 128
    """Pairs per step."""
    learning_rate: float = 3e-6
    warmup: int = 500
    """Steps of linear warm-up; the rate then falls linearly to 0 at the last step."""
    weight_decay: float = 0.3
    clip_norm: float = 1.0
    """Largest norm of the gradient."""
    in_batch_negatives: bool = False
    balance_prompts: bool = True
    """Weigh a pair by 1 / number of pairs that share its prompt."""
    eval_every: int = 100
    patience: int = 10
    """Stop after so many evaluations without a better validation accuracy."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ValueError: a count below 1, or a negative rate.
        """
        for name in ("steps", "batch", "eval_every", "patience"):
            if asdict(self)[name] < 1:
                raise ValueError(f"{name} must be at least 1, got {asdict(self)[name]}")
        if self.learning_rate <= 0 or self.warmup < 0 or self.weight_decay < 0 or self.clip_norm <= 0:
            raise ValueError(
                "learning_rate and clip_norm must be positive, warmup and weight_decay not negative"
            )


@dataclass(kw_only=True)
class TrainResult:
    """What a training run found. The scorer holds the weights of ``best_step``."""

    best_step: int
    validation: Accuracy
    steps: int
    history: list[dict[str, float]] = field(default_factory=list)
    """One row per evaluation: step, loss (mean since the last), accuracy."""


def train_scorer(
    scorer: PickScore, votes: Sequence[Vote], validation: Sequence[Vote], options: TrainOptions | None = None
) -> TrainResult:
    """Train both towers and the scale; keep the weights of the best validation accuracy.

    Args:
        scorer: changed in place; frozen and in evaluation mode again afterwards.
        votes: what to learn from.
        validation: votes on other prompts; they choose the step to keep and the tie threshold.
        options: see TrainOptions.

    Raises:
        ValueError: no votes, a label outside [0, 1], or a bad picture (the message says which vote).
        FloatingPointError: the loss became NaN or infinite.
    """
    options = options or TrainOptions()
    check_votes(votes, "training votes")
    check_votes(validation, "validation votes")
    scorer.requires_grad_(True)
    try:
        return _train(scorer, votes, validation, options)
    finally:
        scorer.requires_grad_(False)


def fit(
    scorer: PickScore, votes: Sequence[Vote], out: str | Path, options: TrainOptions | None = None
) -> dict[str, Any]:
    """Split votes by prompt (80 % train, 10 % validation, 10 % held out), train, save, report.

    Args:
        scorer: trained in place and saved into ``out``; ``scorers.load("pickscore", weights=out)`` reads it.
        votes: at least one for each split.
        out: folder, made if need be; gets ``accuracy.json`` beside the weights.
        options: see TrainOptions.

    Returns:
        The content of ``accuracy.json``.
    """
    parts = split_by_prompt(votes, (0.8, 0.1, 0.1))
    check_votes(parts[2], "held-out votes")
    before = evaluate(scorer, parts[2], threshold=0.0)
    run = train_scorer(scorer, parts[0], parts[1], options)
    heldout = evaluate(scorer, parts[2], run.validation.threshold)
    return save_with_report(
        scorer, out, run, {"held_out": asdict(heldout), "held_out_before": asdict(before)}
    )


def save_with_report(
    scorer: PickScore,
    out: str | Path,
    run: TrainResult,
    more: dict[str, Any],
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Save a scorer with ``accuracy.json`` beside it: how well it does. Returns the content of that file."""
    report = {**more, **asdict(run)}
    scorer.save(out, dtype)
    temporary = Path(out) / "accuracy.json.tmp"
    temporary.write_text(json.dumps(report, indent=2) + "\n")
    os.replace(temporary, Path(out) / "accuracy.json")
    return report


def split_by_prompt(votes: Sequence[Vote], shares: Sequence[float]) -> list[list[Vote]]:
    """Split votes by a hash of their prompt: no prompt is on two sides, and growing data keep their split."""
    parts: list[list[Vote]] = [[] for _ in shares]
    for vote in votes:
        place = int.from_bytes(hashlib.sha256(vote[2].encode()).digest()[:8]) / 2**64 * sum(shares)
        part = 0
        while part < len(shares) - 1 and place >= sum(shares[: part + 1]):
            part += 1
        parts[part].append(vote)
    return parts


def _train(
    scorer: PickScore, votes: Sequence[Vote], validation: Sequence[Vote], options: TrainOptions
) -> TrainResult:
    optimizer = torch.optim.AdamW(_decayed(scorer, options.weight_decay), lr=options.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, options))
    counts = Counter(vote[2] for vote in votes)
    best, state = TrainResult(best_step=0, validation=evaluate(scorer, validation), steps=0), _copy(scorer)
    total = torch.zeros((), device=scorer.device)
    for step, rows in enumerate(_batches(len(votes), options), 1):
        batch = [votes[i] for i in rows]
        loss = _loss(scorer, batch, [counts[vote[2]] for vote in batch], options)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(scorer.parameters(), options.clip_norm)
        optimizer.step()
        schedule.step()
        scorer.clip.logit_scale.data.clamp_(max=MAX_LOGIT_SCALE)
        total += loss.detach()
        if step % options.eval_every == 0 or step == options.steps:
            found = evaluate(scorer, validation)
            _note(best, step, float(total) / (step - best.steps), found)
            total.zero_()
            if found.accuracy > best.validation.accuracy:
                best.best_step, best.validation, state = step, found, _copy(scorer)
            elif step - best.best_step >= options.patience * options.eval_every:
                break
    scorer.load_state_dict(state)
    return best


def _note(result: TrainResult, step: int, loss: float, found: Accuracy) -> None:
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the loss became {loss} before step {step}; lower learning_rate and start again"
        )
    result.steps = step
    result.history.append({"step": step, "loss": loss, "accuracy": found.accuracy, "decided": found.decided})
    logger.info("step %d: loss %.4f, validation accuracy %.3f", step, loss, found.accuracy)


def _loss(scorer: PickScore, batch: Sequence[Vote], counts: Sequence[int], options: TrainOptions) -> Tensor:
    images = scorer.encode_images(stack_images(scorer, [v[0] for v in batch] + [v[1] for v in batch]))
    image_0, image_1 = images.chunk(2)
    return pickscore_loss(
        scorer.encode_prompts([vote[2] for vote in batch]),
        image_0,
        image_1,
        scale=scorer.scale(),
        label_0=torch.tensor([float(vote[3]) for vote in batch], device=images.device),
        num_examples=torch.tensor(counts, device=images.device) if options.balance_prompts else None,
        in_batch_negatives=options.in_batch_negatives,
    )


def stack_images(scorer: PickScore, images: Sequence[ImageLike]) -> Tensor:
    """Read pictures and fit each to the scorer's size: (B, 3, size, size) in [0, 1] on its device."""
    with torch.no_grad():
        return torch.cat([scorer.preprocess.fit(x[None].to(scorer.device)) for x in to_tensors(images)])


def probabilities(scorer: PickScore, votes: Sequence[Vote], batch: int = 64) -> Tensor:
    """(N,) float32 probability, by the scorer, that the first picture of each vote is preferred (CPU)."""
    found = []
    with torch.no_grad():
        for start in range(0, len(votes), batch):
            part = votes[start : start + batch]
            prompts = [vote[2] for vote in part]
            pictures = stack_images(scorer, [v[0] for v in part] + [v[1] for v in part])
            first, second = scorer.score_tensor(pictures, prompts * 2).chunk(2)
            found.append((first - second).sigmoid().cpu())
    return torch.cat(found)


def evaluate(scorer: PickScore, votes: Sequence[Vote], threshold: float | None = None) -> Accuracy:
    """Agreement with votes; ``threshold=None`` chooses the tie threshold on these very votes (validation)."""
    check_votes(votes, "votes")
    return measure(probabilities(scorer, votes), torch.tensor([float(vote[3]) for vote in votes]), threshold)


def check_votes(votes: Sequence[Vote], what: str) -> None:
    """Check labels and count.

    Raises:
        ValueError: no votes at all, or a label outside [0, 1].
    """
    if not votes:
        raise ValueError(f"there are no {what}; votes are split by prompt, so give votes on more prompts")
    for i, vote in enumerate(votes):
        if not 0 <= vote[3] <= 1:
            raise ValueError(
                f"{what}: vote {i} has label {vote[3]}; it must lie in [0, 1] (1 = the first picture wins)"
            )


def rate_at(step: int, options: TrainOptions) -> float:
    """Factor of the learning rate after ``step`` steps: linear warm-up, then linear decay to 0."""
    if step < options.warmup:
        return (step + 1) / (options.warmup + 1)
    return max(0.0, (options.steps - step) / max(1, options.steps - options.warmup))


def _decayed(scorer: PickScore, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups: matrices decay; biases, norms, single vectors and the scale do not."""
    parameters = list(scorer.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _batches(n: int, options: TrainOptions) -> Iterator[list[int]]:
    """Row numbers of each step: every vote once per pass, in a new order each pass, passes joined up."""
    generator = torch.Generator().manual_seed(options.seed)
    rows: list[int] = []
    for _ in range(options.steps):
        while len(rows) < options.batch:
            rows += torch.randperm(n, generator=generator).tolist()
        yield rows[: options.batch]
        rows = rows[options.batch :]


def _copy(scorer: PickScore) -> dict[str, Tensor]:
    return {k: v.detach().cpu().clone() for k, v in scorer.state_dict().items()}
