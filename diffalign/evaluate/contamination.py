"""Prompts that a model was trained on say nothing of new ones: found here, and refused or noted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path

from diffalign.data.split import normalise
from diffalign.evaluate.models import Model, locate
from diffalign.evaluate.prompts import EvalPrompt

USED = "used_prompts.txt"
"""File of voted prompts that ``diffalign votes to-dataset`` leaves beside its data."""


class ContaminationError(ValueError):
    """Prompts that are to be reported are training prompts too."""


class DataGoneError(FileNotFoundError):
    """The training data of a run are not there, so nobody knows its prompts."""


def check_prompts(
    prompts: Sequence[EvalPrompt], models: Sequence[Model], files: Sequence[Path], allow: bool
) -> list[str]:
    """Look for training prompts; returns a note for the report on each source that shares prompts.

    Args:
        prompts: that are to be reported.
        models: of which only run folders know their data.
        files: of prompts that were used, one per line.
        allow: report them all the same.

    Raises:
        ContaminationError: there are some, or a run's data are not there, and ``allow`` is not set.
        FileNotFoundError: no such file.
    """
    notes: list[str] = []
    used = training_prompts([], files)
    for model in models:
        try:
            used |= training_prompts([model], [])
        except DataGoneError as error:
            notes.append(f"{error}, so its training prompts are unknown")
    if notes and not allow:
        raise ContaminationError(f"{'; '.join(notes)}: bring them back, or go on by --allow-contaminated")
    return [*notes, *check(prompts, used, allow)]


def training_prompts(models: Sequence[Model], files: Sequence[Path]) -> dict[str, Set[str]]:
    """Prompts, as ``normalise`` makes them, that runs among the models and files of prompts say were used.

    Raises:
        FileNotFoundError: no such file.
        DataGoneError: a run whose data are not there any more.
    """
    found: dict[str, Set[str]] = {}
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is not a file: --used names a file with a prompt per line")
        found[str(file)] = _normalised(file.read_text(encoding="utf-8").splitlines())
    for model in models:
        if model.kind == "run":
            found[model.name] = _normalised(_of_run(Path(model.path)))
    return found


def _normalised(prompts: Iterable[str]) -> Set[str]:
    return {normalise(p) for p in prompts} - {""}


def _of_run(run: Path) -> list[str]:
    from diffalign.data.readers import read
    from diffalign.online.run import OnlineConfig, training_prompts_of
    from diffalign.train.align import load_any
    from diffalign.train.config import TrainConfig
    from diffalign.train.run import read_config
    from diffalign.world.votes import training_prompts as of_world

    config = load_any(read_config(run))
    if isinstance(config, OnlineConfig):
        return training_prompts_of(config)
    assert isinstance(config, TrainConfig)
    data = config.data
    if data.path is None:
        return [] if data.world is None else [str(p) for p in of_world(data.world)[0]]
    path = locate(data.path)
    used = (path if path.is_dir() else path.parent) / USED
    voted = used.read_text(encoding="utf-8").splitlines() if used.is_file() else []
    try:
        records = read(path, data.format)
    except FileNotFoundError as error:
        raise DataGoneError(f"the data of {run} are not at {path} any more") from error
    return [*voted, *(p for r in records for p in (r.prompt, *(r.prompts or ())))]


def check(prompts: Sequence[EvalPrompt], used: Mapping[str, Set[str]], allow: bool) -> list[str]:
    """Return a note for the report on each source that shares prompts with it.

    Raises:
        ContaminationError: there is one, and ``allow`` is not set.
    """
    notes = [note for source, known in used.items() if (note := _note(prompts, source, known))]
    if notes and not allow:
        raise ContaminationError(
            f"{'; '.join(notes)}: take them out, or report them all the same by --allow-contaminated"
        )
    return notes


def _note(prompts: Sequence[EvalPrompt], source: str, known: Set[str]) -> str:
    both = [p.prompt for p in prompts if normalise(p.prompt) in known]
    return (
        f"{len(both)} of {len(prompts)} prompts were used for training ({source}; {both[0]!r} for one)"
        if both
        else ""
    )
