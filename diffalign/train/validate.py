"""While training: pictures of fixed prompts and seeds, and the win rate on prompts kept for selection."""

from __future__ import annotations

import logging
from collections.abc import Sequence, Set
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from PIL import Image
from torch import Tensor

from diffalign.config import ConfigError
from diffalign.evaluate.generate import Sampling, generate, generate_base
from diffalign.evaluate.judge import load_judges
from diffalign.evaluate.stats import base_sd, compare
from diffalign.train.blocks import RunConfig
from diffalign.train.checkpoint import load_checkpoint, name_of
from diffalign.train.core import Core
from diffalign.train.finish import evaluation_prompts
from diffalign.train.progress import Screen
from diffalign.train.shard import put
from diffalign.train.shown import in_training

log = logging.getLogger(__name__)


class Validator:
    """Called after every step; acts every ``validate.every`` steps, on the main process."""

    def __init__(
        self,
        config: RunConfig,
        accelerator: Accelerator,
        screen: Screen,
        captions: Set[str] = frozenset(),
    ) -> None:
        """Nothing is generated before the first validation, and never on training captions.

        Raises:
            ConfigError: all prompts that could select are training captions.
        """
        found = evaluation_prompts(config, "select", captions) if config.validate.every else []
        if config.validate.every and not found:
            raise ConfigError(
                "all prompts to select checkpoints on are training captions: name others in "
                "evaluate.prompt_file, or set validate.every=0"
            )
        self.prompts = found[: config.validate.prompts]
        self.config, self.accelerator, self.screen = config, accelerator, screen
        self.sampling = Sampling(
            steps=config.evaluate.steps, guidance=config.evaluate.guidance, side=config.evaluate.side
        )
        self.seeds = list(range(500, 500 + config.validate.seeds))

    def __call__(self, trainer: Core) -> None:
        """Validate if this step is due; all processes then agree on the best step so far."""
        every = self.config.validate.every
        if not every or trainer.step % every:
            return
        with trainer.exported_weights():
            if self.accelerator.is_main_process:
                self.validate(trainer)
        trainer.best = broadcast_object_list([trainer.best])[0]

    def validate(self, trainer: Core) -> None:
        """Write a sheet of pictures, and where a judge is named the win rate against the base.

        Inside ``trainer.exported_weights()``, on the main process.
        """
        prompts = self.prompts
        with torch.random.fork_rng(devices=[]):
            base = generate_base(
                trainer.policy, prompts, self.seeds, self.sampling, Path(self.config.data.cache)
            )
            make = partial(generate, trainer.policy, prompts, self.seeds, self.sampling)
            model, people = make(), in_training(trainer.policy, trainer.shown(), make)
        trainer.run.samples.mkdir(exist_ok=True)
        save_sheet(base, model, trainer.run.samples / f"{name_of(trainer.step)}.png", list(people.values()))
        if self.config.validate.judge is not None:
            self._judge(trainer, prompts, base, model)

    def _judge(self, trainer: Core, prompts: list[str], base: Tensor, model: Tensor) -> None:
        judge = load_judges([self.config.validate.judge or ""], [], trainer.policy.device)[0]
        before, after = judge.score(base, prompts), judge.score(model, prompts)
        try:
            sd = base_sd(before)
        except ValueError as error:  # a judge that is blind to these pictures must not end the training
            log.warning("step %d: validate.judge %s cannot judge: %s", trainer.step, judge.name, error)
            return
        found = compare(before, after, sd=sd, resamples=500, flips=500)
        result = found.win_rate
        trainer.run.append_validation(
            trainer.step,
            {
                "win_rate": result.value,
                "low": result.low,
                "high": result.high,
                "mean_gain_sd": found.mean_gain_sd.value,
            },
        )
        interval = f"[{result.low:.3f}, {result.high:.3f}]"
        self.screen.say(f"step {trainer.step}: {judge.name} win rate {result.value:.3f} {interval}")
        if result.value > trainer.best.get("win_rate", -1.0):
            name = name_of(trainer.step)
            trainer.best = {"win_rate": result.value, "step": trainer.step, "checkpoint": name}

    def keep_best(self, trainer: Core) -> None:
        """With ``keep: best`` put the weights that won validation back before they are exported."""
        if self.config.keep != "best" or not trainer.best:
            return
        best = load_checkpoint(trainer.run.checkpoints / trainer.best["checkpoint"])
        for key, value in best.part("policy").items():
            put(trainer.parameters[key], value)
        if trainer.ema is not None:
            trainer.ema.load(best.part("ema"), best.meta["ema_steps"])
        self.screen.say(
            f"kept        step {trainer.best['step']}, win rate {trainer.best['win_rate']:.3f} on "
            f"selection prompts"
        )


def save_sheet(base: Tensor, model: Tensor, path: Path, people: Sequence[Tensor] = ()) -> None:
    """Save (P, S, 3, H, W) uint8 pictures as one PNG: a row per prompt, base left, then model and people."""
    rows = torch.cat([base, model, *people], 1)  # (P, columns S, 3, H, W)
    p, s, _, h, w = rows.shape
    sheet = rows.permute(0, 3, 1, 4, 2).reshape(p * h, s * w, 3)
    Image.fromarray(sheet.numpy()).save(path)
