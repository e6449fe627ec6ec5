"""Losers that a model makes: pairs out of winners alone, in rounds (SPIN-Diffusion, SePPO).

In each round a former checkpoint draws a picture for the prompt of each winner, which is to be preferred
to it, with that very checkpoint as the reference. SPIN (arXiv:2402.10210) takes the checkpoint of the round
before, SePPO (arXiv:2410.05255) a random one of the latest few.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from diffalign.data.keys import content_key
from diffalign.data.records import BytesImage, DataError, ImageSource, Record
from diffalign.data.store import Store
from diffalign.data.writers import write
from diffalign.diffusion.corrupt import draw_seed
from diffalign.evaluate.generate import Progress, Sampling
from diffalign.policy import Policy

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LoserConfig:
    """Who makes the losers, and how often."""

    name: Literal["spin", "seppo"] = "spin"
    """spin: the checkpoint of the round before; seppo: a random one of the latest ``pool``."""
    iterations: int = 3
    """Rounds of making losers and training on them; each takes all of the recipe's steps."""
    pool: int = 7
    """Checkpoints that seppo draws from, the model before training among them."""
    per_winner: int = 1
    """Losers of each winner; each makes a pair."""
    sampling_steps: int = 20
    """Sampling steps of a loser."""
    guidance: float = 4.0
    """Classifier-free guidance of a loser."""
    seed: int = 0
    """Seed of the losers, and of seppo's draws."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        counts = {"iterations": self.iterations, "pool": self.pool, "per_winner": self.per_winner}
        for name, value in (counts | {"sampling_steps": self.sampling_steps}).items():
            if value < 1:
                raise ValueError(f"losers.{name} is {value}; it must be at least 1")
        if self.guidance < 0 or self.seed < 0:
            raise ValueError(
                f"losers.guidance is {self.guidance} and seed {self.seed}; both must be at least 0"
            )


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round: whence training starts, and whom it is compared with."""

    number: int
    """1 for the first."""
    start: str | None
    """LoRA that training starts from; None in the first round."""
    maker: str | None
    """LoRA that makes the losers and is the reference; None is the model before training."""


def run_rounds(
    config: LoserConfig,
    winners: Sequence[Record],
    open_policy: Callable[[str | None], Policy],
    train: Callable[[Round, list[Record]], str],
    cache: Path,
    progress: Progress = lambda n: None,
    turn: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> list[str]:
    """Make losers and train on the pairs, round after round; returns the LoRA of each.

    Args:
        config: see LoserConfig.
        winners: records whose best images win; see ``make_losers``.
        open_policy: the model with a LoRA (None: without) ready to make pictures.
        train: trains a round on pairs and returns the folder of its exported LoRA.
        cache: where generated pictures are kept.
        progress: gets each number of losers made.
        turn: context in which losers are made: of several processes one goes first, the others find its.
    """
    made: list[str] = []
    for number in range(1, config.iterations + 1):
        maker = choose_maker(config, made)
        policy = open_policy(maker)
        with turn():
            pairs = make_losers(policy, winners, config, cache, model=maker or "base", progress=progress)
        del policy  # its memory is the trained one's
        start = made[-1] if made else None
        made.append(train(Round(number=number, start=start, maker=maker), pairs))
    return made


def choose_maker(config: LoserConfig, made: Sequence[str]) -> str | None:
    """LoRA that makes the losers of the next round, after those in ``made``; None is the untrained model."""
    if config.name == "spin":
        return made[-1] if made else None
    pool: list[str | None] = [None, *made][-config.pool :]
    return pool[draw_seed("maker", config.seed, len(made)) % len(pool)]


def make_losers(
    policy: Policy,
    winners: Sequence[Record],
    config: LoserConfig,
    cache: Path,
    *,
    model: str,
    sampling: Sampling | None = None,
    progress: Progress = lambda n: None,
) -> list[Record]:
    """Pair records: each winner against pictures that ``policy`` makes now for its prompt.

    A picture is kept under all that decides it, the weights and guidance of the moment included, so each
    checkpoint makes it once. Winners of one prompt get different losers.

    Args:
        policy: who makes the losers: as it is, or inside ``policy.reference()`` or ``policy.base()``.
        winners: records of any kind; the best images of a comparison and the liked ones of labels win.
        config: see LoserConfig.
        cache: where generated pictures are kept.
        model: what to call the maker in the records.
        sampling: how the pictures are made; None takes steps and guidance from ``config``.
        progress: gets each number of losers made or found.

    Raises:
        DataError: there is no winner in the records.
    """
    won = [(r, i) for r in winners for i in _best(r)]
    if not won:
        raise DataError("losers are made for winners, and the data hold ties and dislikes only")
    sampling = sampling or Sampling(steps=config.sampling_steps, guidance=config.guidance)
    jobs = _jobs([r.prompt_of(i) for r, i in won], config)
    images = _pictures(policy, jobs, sampling, Store(cache / "losers"), progress)
    return [
        Record(
            prompt=record.prompt_of(i),
            images=(record.images[i], images[n * config.per_winner + k]),
            kind="pair",
            values=(1.0, 0.0),
            models=(record.models[i] if record.models else "data", model),
            source=f"{record.source or 'record'} against {model}",
        )
        for n, (record, i) in enumerate(won)
        for k in range(config.per_winner)
    ]


def write_losers(records: Sequence[Record], folder: Path) -> Path:
    """Save pairs as a folder with metadata.jsonl, for a look at them or for ``data.path``."""
    folder.mkdir(parents=True, exist_ok=True)
    write(records, folder, "folder")
    return folder


@dataclass(frozen=True, slots=True)
class _StoredImage:
    """A picture in a store, encoded when it is asked for."""

    store: Store
    key: str
    prompt: str

    @property
    def where(self) -> str:
        """Prompt and key."""
        return f"loser {self.key[:12]} for {self.prompt[:60]!r}"

    def read(self) -> bytes:
        """Bytes of a PNG file."""
        pixels = self.store.get(self.key)["picture"].permute(1, 2, 0).numpy()
        return BytesImage.from_array(pixels, self.where).data


def _best(record: Record) -> list[int]:
    """Places of the images that win: the liked ones, or the best of a comparison that is no tie."""
    best = 1.0 if record.kind == "labels" else max(record.values)
    tied = record.kind != "labels" and min(record.values) == best
    return [] if tied else [i for i, value in enumerate(record.values) if value == best]


def _jobs(prompts: Sequence[str], config: LoserConfig) -> list[tuple[str, int]]:
    """(prompt, seed) of every loser; a prompt's seeds go on from winner to winner."""
    seen: Counter[str] = Counter()
    jobs = []
    for prompt in prompts:
        for _ in range(config.per_winner):
            jobs.append((prompt, draw_seed("loser", config.seed, prompt, seen[prompt])))
            seen[prompt] += 1
    return jobs


def _pictures(
    policy: Policy, jobs: Sequence[tuple[str, int]], sampling: Sampling, store: Store, progress: Progress
) -> list[ImageSource]:
    """Pictures in the order of the jobs, made where the store lacks them."""
    maker = _maker(policy, sampling)
    keys = [content_key("loser", maker, prompt, str(seed)) for prompt, seed in jobs]
    missing = [(k, *job) for k, job in zip(keys, jobs, strict=True) if k not in store]
    progress(len(jobs) - len(missing))
    try:
        for start in range(0, len(missing), sampling.batch):
            some = missing[start : start + sampling.batch]
            for (key, _, _), picture in zip(some, _generate(policy, some, sampling), strict=True):
                store.add(key, {"picture": picture})
            progress(len(some))
    finally:
        store.flush()  # also on an error: what is made need not be made again
    logger.info("losers: %d made, %d found", len(missing), len(jobs) - len(missing))
    return [_StoredImage(store, key, prompt) for key, (prompt, _) in zip(keys, jobs, strict=True)]


def _generate(policy: Policy, some: Sequence[tuple[str, str, int]], sampling: Sampling) -> Tensor:
    """(B, 3, H, W) uint8 pictures."""
    made = policy.generate(
        [prompt for _, prompt, _ in some],
        [seed for _, _, seed in some],
        steps=sampling.steps,
        guidance=sampling.guidance,
        side=sampling.side,
    )
    return (made.clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def _maker(policy: Policy, sampling: Sampling) -> str:
    """Digest of all that decides a picture apart from prompt and seed; see ``Policy.present_id``."""
    scheduler = policy.pipeline.scheduler
    weights = [policy.present_id(), policy.encoder_id("vae"), policy.encoder_id("text")]
    settings: list[Any] = [sampling.steps, sampling.guidance, sampling.side, type(scheduler).__name__]
    settings += [dict(scheduler.config), policy.device.type, str(policy.dtype)]
    return hashlib.sha256(json.dumps([weights, settings], sort_keys=True, default=str).encode()).hexdigest()
