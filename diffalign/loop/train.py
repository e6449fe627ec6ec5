"""Training of a round: the settings of a recipe, on the round's votes, from the adapter before."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from diffalign.assets import recipe as recipe_path
from diffalign.evaluate.generate import Sampling
from diffalign.loop.options import RECIPES, LoopOptions, RoundFolder
from diffalign.policy import Policy, load_policy
from diffalign.policy.export import LORA_FILE
from diffalign.policy.lora import AdapterConfig
from diffalign.policy.precision import DTYPES, best_device
from diffalign.train.align import align, load_recipe
from diffalign.train.blocks import OptimConfig
from diffalign.train.checkpoint import newest
from diffalign.train.config import TrainConfig

KTO: dict[str, Any] = {
    "objective": {"name": "kto", "beta": 2000},
    "batch": 32,
    "corruptor": {"name": "independent_noise"},
}
"""Settings of KTO in place of the recipe's, as the league tunes them on the shapes UNet."""
REPORT = "report.json"


def base_recipe(options: LoopOptions) -> dict[str, Any]:
    """The settings that all rounds share.

    Raises:
        FileNotFoundError: no such recipe.
    """
    file = recipe_path(options.recipe or RECIPES[options.pipeline])
    recipe: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    recipe |= KTO if options.objective == "kto" else {}
    recipe["policy"]["model"] = options.pipeline
    # Always against the untouched model: relative to the round before, small errors would add up unchecked.
    recipe["policy"]["reference"] = "off"
    usual = recipe.setdefault("optim", {}).get("learning_rate", OptimConfig.learning_rate)
    recipe["optim"]["learning_rate"] = options.learning_rate or usual / 2
    recipe["steps"], recipe["seed"] = options.steps, options.seed
    recipe["checkpoint_every"] = max(1, options.steps // 2)
    recipe["data"]["world"] = {"taste": options.taste, "seed": options.seed}
    evaluate = {"seeds": options.seeds, "judges": options.judges, "trained_on": []}
    evaluate["prompts"] = options.evaluate_prompts if options.judges else 0
    evaluate["prompt_file"] = options.evaluate_file or None
    recipe["evaluate"] = recipe.get("evaluate", {}) | evaluate
    return recipe


def open_policy(options: LoopOptions, before: RoundFolder | None) -> tuple[TrainConfig, Policy]:
    """The model as the round before left it, ready to make pictures."""
    config = load_recipe(base_recipe(options))
    adapter = None
    if before is not None:
        own = config.policy.adapter or AdapterConfig()
        adapter = replace(own, init_from=str(before.run / "export"))
    policy = load_policy(
        options.pipeline,
        adapter,
        text_length=config.policy.text_length,
        allow_download=config.policy.allow_download,
    )
    policy.set_long_prompts(config.policy.long_prompts)
    return config, policy.to(best_device(), DTYPES[config.precision])


def sampling_of(config: TrainConfig) -> Sampling:
    """Pictures are drawn as the evaluation draws its own."""
    chosen = config.evaluate
    return Sampling(steps=chosen.steps, guidance=chosen.guidance, side=chosen.side)


def train_round(options: LoopOptions, folder: RoundFolder, before: RoundFolder | None, cache: Path) -> None:
    """Train on the round's data, and evaluate against the untouched base; goes on where it was cut short."""
    recipe = base_recipe(options)
    recipe["data"] |= {"path": str(folder.data), "format": "folder", "cache": str(cache)}
    recipe["output"] = str(folder.run)
    if before is not None:
        recipe["policy"]["adapter"]["init_from"] = str(before.run / "export")
    if newest(folder.run / "checkpoints") is not None:
        align(recipe, resume=folder.run)
        return
    shutil.rmtree(folder.run, ignore_errors=True)  # cut short before its first checkpoint
    align(recipe)


def is_trained(options: LoopOptions, folder: RoundFolder) -> bool:
    """Whether the round's run has ended."""
    wanted = (
        folder.run / REPORT
        if options.judges and options.evaluate_prompts
        else folder.run / "export" / LORA_FILE
    )
    return wanted.is_file()
