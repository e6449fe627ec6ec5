"""How to train scorers; the presets are what the papers published."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal

from scorers.learners import LOSSES, Loss


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How to train; the defaults are those of the published PickScore (ViT-H, 4000 steps of 128 pairs)."""

    loss: Loss = "pickscore"
    """Of pairs: pickscore (ties and soft labels), hpsv2 (summed), bradley-terry (ImageReward, GPM), hinge
    (PAL), regression (GPM), hpsv3 (uncertain scores), and of HPSv3's code margin, ties and soft-choice. Of
    whole rankings: listwise (Plackett-Luce), choice (HPS v1), ranking-hinge (HPSv2). Of NIMA's marks: emd."""
    steps: int = 4000
    epochs: float | None = None
    """Passes over the data, in place of ``steps``."""
    batch: int = 128
    """Comparisons per step, over all processes."""
    learning_rate: float = 3e-6
    head_rate: float | None = None
    """Rate of what starts anew: PAL's people and prototypes, MPS's cross model; None is ``learning_rate``."""
    warmup: int = 500
    """Steps of linear warm-up; the rate then falls to 0 at the last step."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the rate falls."""
    weight_decay: float = 0.3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip_norm: float = 1.0
    """Largest norm of the gradient."""
    in_batch_negatives: bool = False
    balance_prompts: bool = True
    """Weigh a pair by 1 / number of pairs that share its prompt."""
    unlocked_vision: int | None = None
    """Train so many last blocks of the picture tower and what follows them; None trains it all."""
    unlocked_text: int | None = None
    """The same of the text tower."""
    keep: Literal["accuracy", "loss"] = "accuracy"
    """Which step is kept: best tie-aware validation accuracy, or least validation log-loss."""
    eval_every: int = 100
    patience: int = 10
    """Stop after so many evaluations without a better one."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ValueError: a count below 1, a negative rate, or an unknown loss.
        """
        for name in ("steps", "batch", "eval_every", "patience"):
            if asdict(self)[name] < 1:
                raise ValueError(f"{name} must be at least 1, got {asdict(self)[name]}")
        if self.learning_rate <= 0 or self.warmup < 0 or self.weight_decay < 0 or self.clip_norm <= 0:
            raise ValueError(
                "learning_rate and clip_norm must be positive, warmup and weight_decay not negative"
            )
        if self.epochs is not None and self.epochs <= 0:
            raise ValueError(f"epochs must be positive, got {self.epochs}")
        if self.loss not in LOSSES:
            raise ValueError(f"no loss {self.loss!r}; there are {', '.join(LOSSES)}")

    @property
    def summed(self) -> bool:
        """Whether the published loss is a sum over the batch and not a mean."""
        return self.loss == "hpsv2"

    def of_length(self, items: int) -> TrainOptions:
        """The same with ``epochs`` turned into steps."""
        if self.epochs is None:
            return self
        return replace(self, steps=max(1, math.ceil(self.epochs * items / self.batch)), epochs=None)


def rate_at(step: int, options: TrainOptions) -> float:
    """Factor of the learning rate after ``step`` steps: linear warm-up, then down to 0 at the last step."""
    if step < options.warmup:
        return (step + 1) / (options.warmup + 1)
    if options.schedule == "constant":
        return 1.0
    left = max(0.0, (options.steps - step) / max(1, options.steps - options.warmup))
    return left if options.schedule == "linear" else 0.5 - 0.5 * math.cos(math.pi * left)


PRESETS: Mapping[str, TrainOptions] = {
    "pickscore": TrainOptions(),
    "hpsv2": TrainOptions(
        loss="hpsv2", learning_rate=3.3e-6, weight_decay=0.35, schedule="cosine", betas=(0.9, 0.98),
        eps=1e-6, unlocked_vision=19, unlocked_text=11, balance_prompts=False,
    ),
    "mps": TrainOptions(),
    "imagereward": TrainOptions(
        loss="bradley-terry", learning_rate=1e-5, batch=64, epochs=10, warmup=0, schedule="cosine",
        weight_decay=0.0, unlocked_vision=8, unlocked_text=4, balance_prompts=False, keep="loss",
    ),
    "pal": TrainOptions(
        loss="bradley-terry", learning_rate=1e-4, head_rate=5e-3, epochs=15, warmup=0, schedule="constant",
        weight_decay=0.01, balance_prompts=False,
    ),
    "gpm": TrainOptions(
        loss="bradley-terry", learning_rate=2e-6, epochs=2, warmup=0, schedule="cosine", weight_decay=0.0,
        balance_prompts=False,
    ),
    "hpsv3": TrainOptions(
        loss="hpsv3", learning_rate=2e-6, batch=8, epochs=10, warmup=0, schedule="constant", weight_decay=0.0,
        balance_prompts=False, keep="loss",
    ),
    "nima": TrainOptions(
        loss="emd", learning_rate=1e-3, epochs=10, warmup=0, schedule="constant", weight_decay=0.0,
        balance_prompts=False, keep="loss",
    ),
}  # fmt: skip
"""Published defaults by the name of the scorer.

HPSv2 publishes 20 unlocked groups of the picture tower, which are 19 blocks and the projection; ImageReward
freezes 70 % of both towers, of a large BLIP 16 of 24 blocks and 8 of 12. HPSv3 warms up for 5 % of the steps,
which is left out here."""


def preset(name: str) -> TrainOptions:
    """Published defaults of a scorer; the families share theirs (``hpsv2.1`` those of ``hpsv2``).

    Raises:
        ValueError: none are published for it.
    """
    family = {"hpsv1": "hpsv2", "hpsv2.1": "hpsv2", "vp-score": "imagereward", "clipscore": "pickscore"}
    found = family.get(name, name)
    if found not in PRESETS:
        raise ValueError(f"no training of {name!r} is published; there are {', '.join(PRESETS)}")
    return PRESETS[found]
