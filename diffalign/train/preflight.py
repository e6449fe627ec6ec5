"""What a run needs only later, looked at before its weights are loaded: judges, prompts, trackers."""

from __future__ import annotations

from collections.abc import Sequence

from diffalign.config import ConfigError
from diffalign.data.records import Record
from diffalign.evaluate.judge import load_judges
from diffalign.evaluate.prompts import Part
from diffalign.train.config import TrainConfig
from diffalign.train.finish import evaluation_prompts
from diffalign.train.trackers import check_trackers
from diffalign.world.grammar import parse

LOOKED_AT = 100
"""Records whose prompts tell whether data are of the shapes world."""


def preflight(config: TrainConfig, records: Sequence[Record] | None) -> None:
    """Load and let go what validation and evaluation will need.

    Args:
        config: recipe.
        records: preferences that are there already; None where the shapes world makes them.

    Raises:
        ConfigError: no prompts to evaluate on, or none that suit the data.
        ValueError: no judge, or one that is held out and trained on; a prompt file that cannot be read.
        RegistryError: no scorer has a judge's name.
        FileNotFoundError: no prompt file, or no weights of a judge.
        ModuleNotFoundError: a tracker's package is not installed.
    """
    check_trackers(config.log.trackers)
    if config.evaluate.prompts:
        _check_prompts(config, records, "report", "evaluate.prompts=0")
        load_judges(config.evaluate.judges, config.evaluate.trained_on)
    if config.validate.every:
        _check_prompts(config, records, "select", "validate.every=0")
        if config.validate.judge is not None:
            load_judges([config.validate.judge], [])


def _check_prompts(config: TrainConfig, records: Sequence[Record] | None, part: Part, off: str) -> None:
    file = config.evaluate.prompt_file
    stranger = None if file or records is None else _not_of_the_world(records)
    if stranger is not None:
        raise ConfigError(
            "evaluate.prompt_file is null, which takes prompts of the shapes world, but the data have others "
            f"such as {stranger[:60]!r}: name a file of held-out prompts, or set {off}"
        )
    if not evaluation_prompts(config, part):
        raise ConfigError(
            f"evaluate.prompt_file {file} has no prompt in the part called {part!r} (prompts are split by "
            f"hash, 30% to select and 70% to report): give it more prompts, or set {off}"
        )


def _not_of_the_world(records: Sequence[Record]) -> str | None:
    """First prompt that the shapes world cannot say."""
    for record in records[:LOOKED_AT]:
        try:
            parse(record.prompt)
        except ValueError:
            return record.prompt
    return None
