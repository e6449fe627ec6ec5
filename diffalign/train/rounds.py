"""Runs in rounds: a former checkpoint makes the losers of each (SPIN, SePPO)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from diffalign.data.records import Record
from diffalign.policy import Policy, load_policy
from diffalign.policy.export import LORA_FILE
from diffalign.policy.lora import AdapterConfig
from diffalign.policy.precision import DTYPES
from diffalign.train.config import TrainConfig, recipe_text
from diffalign.train.losers import Round
from diffalign.train.prepare import read_records
from diffalign.train.progress import Screen

REPORT = "report.json"


def start_rounds(
    config: TrainConfig, records: Sequence[Record] | None, device: torch.device
) -> tuple[list[Record], partial[Policy]]:
    """Read the winners, and say how a maker of losers is opened.

    Raises:
        DataError: the data do not follow their format.
    """
    opener = partial(open_maker, config, device)
    screen = Screen(True, config.steps, config.batch, config.log.every)
    return list(records) if records is not None else read_records(config, opener(None), screen), opener


def open_maker(config: TrainConfig, device: torch.device, lora: str | None) -> Policy:
    """The model with a LoRA (None: a fresh one, which changes nothing), ready to make pictures."""
    adapter = replace(config.policy.adapter or AdapterConfig(), init_from=lora)
    policy = load_policy(
        config.policy.model,
        adapter,
        text_length=config.policy.text_length,
        allow_download=config.policy.allow_download,
    )
    policy.set_long_prompts(config.policy.long_prompts)
    return policy.to(device, DTYPES[config.precision])


def round_recipe(config: TrainConfig, folder: Path, one: Round, last: bool) -> dict[str, Any]:
    """Recipe of one round: it starts at the round before, against whoever made the losers.

    Only the last one is evaluated, and always against the model before the first.
    """
    recipe: dict[str, Any] = yaml.safe_load(recipe_text(config))
    recipe |= {"losers": None, "output": str(folder)}
    recipe["policy"]["adapter"]["init_from"] = one.start or recipe["policy"]["adapter"]["init_from"]
    recipe["policy"]["reference"] = {"name": "lora", "source": one.maker} if one.maker else "off"
    if not last:
        recipe["evaluate"]["prompts"] = 0
    return recipe


def finished(folder: Path, last: bool) -> bool:
    """Whether a round's run has ended, so that a run that was killed goes on after it."""
    exported = (folder / "export" / LORA_FILE).exists()
    return exported and (not last or (folder / REPORT).exists())
