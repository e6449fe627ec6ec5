"""A tiny CLIP of the shapes world, and the PickScore-type scorer that simulated votes make of it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from diffalign.train.checkpoint import (
    Checkpoint,
    load_checkpoint,
    newest,
    pack_optimizer,
    prune,
    save_checkpoint,
    unpack_optimizer,
)
from diffalign.world.grammar import Prompt, Split, sample_prompts
from diffalign.world.models import TOKENS, clip_tokenizer
from diffalign.world.raters import Rater, leaves_open, named_rater
from diffalign.world.shapes import SIDE, draw
from scorers.accuracy import Accuracy, measure
from scorers.losses import contrastive_loss
from scorers.pickscore import PickScore
from scorers.train import MAX_LOGIT_SCALE, TrainOptions, Vote, evaluate, save_with_report, train_scorer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ClipSizes:
    """Sizes of the towers; the defaults are those of samples/shapes/scorer (about 1.1 million parameters)."""

    width: int = 128
    heads: int = 4
    vision_layers: int = 3
    text_layers: int = 2
    patch: int = 8
    projection: int = 64


FINETUNE = TrainOptions(
    steps=500,
    batch=64,
    learning_rate=3e-4,
    warmup=20,
    weight_decay=0.1,
    eval_every=25,
    patience=20,
    balance_prompts=False,
)
"""How the tiny CLIP learns from votes: rates far above the published ones, for a far smaller model."""


@dataclass(frozen=True, kw_only=True)
class ScorerPlan:
    """How the scorer of the shapes world is made; the defaults remake samples/shapes/scorer."""

    taste: str = "large"
    votes: int = 4000
    validation_votes: int = 1000
    """Votes on training prompts, kept apart from those that are learnt from; they choose the step."""
    heldout_votes: int = 1000
    """Votes on held-out prompts, for the figures that are reported."""
    pretrain_steps: int = 800
    pretrain_batch: int = 128
    pretrain_rate: float = 1e-3
    finetune: TrainOptions = FINETUNE
    seed: int = 0
    save_every: int = 50
    """Steps of pre-training between two resume points."""


def build_shapes_clip(sizes: ClipSizes | None = None, seed: int = 0) -> CLIPModel:
    """Untrained CLIP for 64 x 64 pictures and the world's prompts; the same seed gives the same weights."""
    sizes = sizes or ClipSizes()
    tokenizer = clip_tokenizer()
    end = int(tokenizer.eos_token_id)
    tower = {
        "hidden_size": sizes.width,
        "intermediate_size": 4 * sizes.width,
        "num_attention_heads": sizes.heads,
    }
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": TOKENS,
        "num_hidden_layers": sizes.text_layers,
        "bos_token_id": int(tokenizer.bos_token_id),
        "eos_token_id": end,
        "pad_token_id": end,
    }
    vision = {"image_size": SIDE, "patch_size": sizes.patch, "num_hidden_layers": sizes.vision_layers}
    config = CLIPConfig(
        text_config={**tower, **text}, vision_config={**tower, **vision}, projection_dim=sizes.projection
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIPModel(config)


def simulate_votes(
    n: int,
    rater: Rater,
    rng: np.random.Generator,
    split: Split = "train",
    stray: float = 0.15,
    spoilt: float = 0.05,
) -> tuple[list[Vote], Tensor]:
    """Let a rater vote on pairs of freshly rendered pictures.

    Prompts leave something open that the rater cares for. So that a scorer also learns what a bad picture is,
    a share ``stray`` of the pairs has one picture of another prompt, a share ``spoilt`` noise or a flat
    colour.

    Returns:
        n votes with uint8 (3, 64, 64) pictures, and (n,) the rater's noise-free utility, first minus second.
    """
    prompts = _open_prompts(n, rater, rng, split)
    shown = list(prompts)
    for i in np.flatnonzero(rng.random(n) < stray):
        shown[i] = prompts[int(rng.integers(n))]
    first, second = draw(prompts, rng), draw(shown, rng)
    for i in np.flatnonzero(rng.random(n) < spoilt):
        second[i] = _spoilt(rng)
    swap = torch.from_numpy(rng.random(n) < 0.5)[:, None, None, None]
    pictures = [_bytes(torch.where(swap, a, b)) for a, b in ((first, second), (second, first))]
    utility_0, utility_1 = (_utility(rater, p, prompts) for p in pictures)
    labels = rater.vote(utility_0, utility_1, rng)
    rows = zip(*pictures, map(str, prompts), labels.tolist(), strict=True)
    return [Vote(*row) for row in rows], utility_0 - utility_1


def best_possible(gap: Tensor, labels: Tensor, rater: Rater) -> Accuracy:
    """Accuracy of the rater's noise-free utility on the rater's noisy votes: nobody beats it but by luck.

    Args:
        gap: (N,) utility of first minus second picture; below the rater's ``tie_below`` it predicts a tie.
        labels: (N,) the votes.
        rater: who voted.
    """
    gap = torch.where(gap.abs() < rater.tie_below, 0.0, gap)
    return measure((gap / rater.temperature).sigmoid(), labels, threshold=0.0)


def make_scorer(plan: ScorerPlan, work: Path, out: Path, sizes: ClipSizes | None = None) -> dict[str, Any]:
    """Pre-train, fine-tune on votes, report and save the scorer of the shapes world.

    Args:
        plan: what to do.
        work: folder of the resume state; a second call goes on where the first stopped.
        out: folder of the scorer; gets ``accuracy.json`` beside the weights.
        sizes: sizes of the towers.

    Returns:
        The content of ``accuracy.json``.
    """
    scorer = PickScore(build_shapes_clip(sizes, plan.seed), clip_tokenizer())
    pretrain(scorer, plan, work)
    rater = named_rater(plan.taste)
    rng = np.random.default_rng([plan.seed, 1])
    votes, _ = simulate_votes(plan.votes + plan.validation_votes, rater, rng)
    heldout, gap = simulate_votes(plan.heldout_votes, rater, rng, "heldout")
    logger.info("%d votes, %d on held-out prompts", len(votes), len(heldout))
    run = train_scorer(
        scorer, votes[: plan.votes], votes[plan.votes :], replace(plan.finetune, seed=plan.seed)
    )
    scorer.half().float()  # what is measured is what is saved
    labels = torch.tensor([vote.label for vote in heldout])
    more = {
        "taste": plan.taste,
        "held_out": asdict(evaluate(scorer, heldout, run.validation.threshold)),
        "best_possible": asdict(best_possible(gap, labels, rater)),
        "plan": json.loads(json.dumps(asdict(plan))),  # as the file will have it
    }
    return save_with_report(scorer, out, run, more, torch.float16)


def pretrain(scorer: PickScore, plan: ScorerPlan, work: Path) -> None:
    """Contrastive pre-training on freshly rendered pictures; resumable, every step has its own seed.

    Raises:
        ValueError: the resume state in ``work`` is of another plan.
    """
    scorer.requires_grad_(True)
    optimizer = torch.optim.AdamW(
        scorer.parameters(), lr=plan.pretrain_rate, weight_decay=0.05, betas=(0.9, 0.98)
    )
    start, last = _resume(scorer, optimizer, plan, work), time.monotonic()
    for step in range(start, plan.pretrain_steps):
        for group in optimizer.param_groups:
            group["lr"] = plan.pretrain_rate * _warm_cosine(step, plan.pretrain_steps)
        loss, hits = _pretrain_step(
            scorer, optimizer, plan.pretrain_batch, np.random.default_rng([plan.seed, 0, step])
        )
        if (step + 1) % plan.save_every == 0 or step + 1 == plan.pretrain_steps:
            seconds, last = time.monotonic() - last, time.monotonic()
            logger.info(
                "pre-training step %d: loss %.3f, right prompt %.3f, %.0f s", step + 1, loss, hits, seconds
            )
            _save_state(scorer, optimizer, plan, work, step + 1)
    scorer.requires_grad_(False)


def _pretrain_step(
    scorer: PickScore, optimizer: torch.optim.Optimizer, batch: int, rng: np.random.Generator
) -> tuple[float, float]:
    """One step; gives the loss and the share of pictures whose own prompt fits best."""
    prompts = list(
        {str(p): p for p in sample_prompts(batch, rng)}.values()
    )  # a prompt is no negative of itself
    text, image = scorer.encode_prompts(list(map(str, prompts))), scorer.encode_images(draw(prompts, rng))
    loss = contrastive_loss(text, image, scale=scorer.scale())
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(scorer.parameters(), 1.0)
    optimizer.step()
    scorer.clip.logit_scale.data.clamp_(max=MAX_LOGIT_SCALE)
    hits = (image @ text.T).argmax(1) == torch.arange(len(prompts))
    return float(loss.detach()), float(hits.float().mean())


def _warm_cosine(step: int, steps: int) -> float:
    warmup = max(1, steps // 20)
    return min(1.0, (step + 1) / warmup) * (0.5 + 0.5 * float(np.cos(np.pi * step / steps)))


def _key(plan: ScorerPlan) -> dict[str, float]:
    return {
        "steps": plan.pretrain_steps,
        "batch": plan.pretrain_batch,
        "rate": plan.pretrain_rate,
        "seed": plan.seed,
    }


def _save_state(
    scorer: PickScore, optimizer: torch.optim.Optimizer, plan: ScorerPlan, work: Path, step: int
) -> None:
    named = dict(scorer.named_parameters())
    tensors, scalars = pack_optimizer(optimizer, named)
    state = {f"policy/{k}": p.detach() for k, p in named.items()} | {
        f"optim/{k}": v for k, v in tensors.items()
    }
    save_checkpoint(work, Checkpoint(step=step, tensors=state, meta={"plan": _key(plan), "optim": scalars}))
    prune(work, keep=1)


@torch.no_grad()
def _resume(scorer: PickScore, optimizer: torch.optim.Optimizer, plan: ScorerPlan, work: Path) -> int:
    file = newest(work)
    if file is None:
        return 0
    state = load_checkpoint(file)
    if state.meta["plan"] != _key(plan):
        raise ValueError(
            f"{file} belongs to the plan {state.meta['plan']}, not to {_key(plan)}: change --work"
        )
    named = dict(scorer.named_parameters())
    for key, value in state.part("policy").items():
        named[key].copy_(value)
    unpack_optimizer(optimizer, named, state.part("optim"), state.meta["optim"])
    return state.step


def _open_prompts(n: int, rater: Rater, rng: np.random.Generator, split: Split) -> list[Prompt]:
    prompts: list[Prompt] = []
    while len(prompts) < n:
        prompts += [p for p in sample_prompts(n, rng, split) if leaves_open(p, rater.weights)]
    return prompts[:n]


def _spoilt(rng: np.random.Generator) -> Tensor:
    """(3, 64, 64) picture that shows nothing: noise, or one flat colour."""
    shape = (3, SIDE, SIDE) if rng.random() < 0.5 else (3, 1, 1)
    return torch.tensor(rng.random(shape), dtype=torch.float32).expand(3, SIDE, SIDE)


def _bytes(pictures: Tensor) -> Tensor:
    return (pictures.clamp(0, 1) * 255).round().byte()


def _utility(rater: Rater, pictures: Tensor, prompts: Sequence[Prompt], chunk: int = 256) -> Tensor:
    parts = range(0, len(prompts), chunk)
    return torch.cat(
        [rater.score(pictures[i : i + chunk].float() / 255, prompts[i : i + chunk]) for i in parts]
    )
