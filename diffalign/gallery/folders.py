"""Reading folders of results into one set of pictures that every model has."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffalign.evaluate.results import ResultsError, Row, models_of, read_rows

logger = logging.getLogger(__name__)

Place = tuple[str, int]
"""Prompt id and seed."""


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One picture on disk."""

    row: Row
    file: Path
    scores: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Joined:
    """Pictures of several folders, of the same prompts and seeds for every model."""

    models: Sequence[str]
    """The base first."""
    seeds: Sequence[int]
    prompts: Sequence[Row]
    """One row for each prompt, for its text and category."""
    shots: Mapping[tuple[str, str, int], Shot]
    """By model, prompt id and seed."""
    judges: Sequence[str]
    """Scorers that every picture has a score of."""


def join(folders: Sequence[Path], base: str | None = None) -> Joined:
    """Read folders of results and check that their pictures can be compared.

    A model that several folders hold (as a rule the base) must have the same pictures in all of them.

    Args:
        folders: folders of results, in the order in which their models are shown.
        base: model to put first; by default the first one of the first folder.

    Raises:
        ResultsError: no rows, runs that do not share prompts or seeds, missing or changed pictures, a score
            that is not finite.
    """
    shots: dict[tuple[str, str, int], Shot] = {}
    for folder in folders:
        root = folder.parent if folder.suffix == ".jsonl" else folder
        rows = read_rows(folder)
        if not rows:
            raise ResultsError(f"{folder} holds no rows: nothing was evaluated there")
        for row in rows:
            _add(shots, row, root)
    models = models_of([shot.row for shot in shots.values()])
    if base is not None and base in models:
        models = [base, *(model for model in models if model != base)]
    seeds = _check_shared(shots, models)
    check_files(list(shots.values()))
    prompts: dict[str, Row] = {}
    for shot in shots.values():
        prompts.setdefault(shot.row.prompt_id, shot.row)
    return Joined(
        models=models,
        seeds=seeds,
        prompts=list(prompts.values()),
        shots=shots,
        judges=_judges(list(shots.values())),
    )


def check_files(shots: Sequence[Shot]) -> None:
    """Check that every picture is there and is the one that was judged.

    Raises:
        ResultsError: names the first picture that is missing or changed, and how many there are.
    """
    missing = [shot for shot in shots if not shot.file.is_file()]
    if missing:
        raise ResultsError(
            f"{missing[0].file} is missing{_more(missing)}: copy the folder of results whole, or run "
            "`diffalign evaluate` again"
        )
    changed = [s for s in shots if hashlib.sha256(s.file.read_bytes()).hexdigest() != s.row.sha256]
    if changed:
        raise ResultsError(
            f"{changed[0].file} changed since it was judged{_more(changed)}: its sha256 is not the one in "
            "results.jsonl; restore it, or run `diffalign evaluate` again"
        )


def _add(shots: dict[tuple[str, str, int], Shot], row: Row, root: Path) -> None:
    key, file = (row.model, row.prompt_id, row.seed), root / row.path
    bad = [name for name, score in row.scores.items() if not math.isfinite(score)]
    if bad:
        raise ResultsError(f"{file}: score of {bad[0]} is {row.scores[bad[0]]}: look at it and at its judge")
    old = shots.get(key)
    if old is None:
        shots[key] = Shot(row=row, file=file, scores=row.scores)
    elif old.row.sha256 != row.sha256:
        raise ResultsError(
            f"{row.model!r} has two pictures of prompt {row.prompt!r}, seed {row.seed}: {old.file} and "
            f"{file} differ; runs that are joined must share it, or give the model another name"
        )
    else:
        shots[key] = Shot(row=old.row, file=old.file, scores={**row.scores, **old.scores})


def _check_shared(shots: Mapping[tuple[str, str, int], Shot], models: Sequence[str]) -> list[int]:
    """Return the seeds that every model has for every prompt."""
    places = {model: {(p, s) for m, p, s in shots if m == model} for model in models}
    texts = {shot.row.prompt_id: shot.row.prompt for shot in shots.values()}
    for shot in shots.values():
        if texts[shot.row.prompt_id] != shot.row.prompt:
            raise ResultsError(
                f"prompt id {shot.row.prompt_id} names {texts[shot.row.prompt_id]!r} and "
                f"{shot.row.prompt!r}: evaluate both runs with the same prompts"
            )
    for model in models[1:]:
        for lacking, having in ((model, models[0]), (models[0], model)):
            if gap := sorted(places[having] - places[lacking]):
                raise ResultsError(_unlike(gap, lacking, having, texts, {p for p, _ in places[lacking]}))
    seeds = sorted({seed for _, seed in places[models[0]]})
    whole = {(name, seed) for name in texts for seed in seeds}
    if gap := sorted(whole - places[models[0]]):
        name, seed = gap[0]
        raise ResultsError(
            f"prompt {texts[name]!r} has no picture of seed {seed}{_more(gap)}: every prompt needs the same "
            "seeds; run `diffalign evaluate` to its end"
        )
    return seeds


def _unlike(
    gap: Sequence[Place], lacking: str, having: str, texts: Mapping[str, str], prompts: set[str]
) -> str:
    name, seed = gap[0]
    what = f"seed {seed} of prompt {texts[name]!r}" if name in prompts else f"prompt {texts[name]!r}"
    return (
        f"the runs do not share prompts and seeds: {lacking!r} lacks {what}, which {having!r} "
        f"has{_more(gap)}; evaluate both with the same --prompts and --seeds"
    )


def _judges(shots: Sequence[Shot]) -> list[str]:
    every = [judge for judge in shots[0].scores if all(judge in shot.scores for shot in shots)]
    some = sorted({judge for shot in shots for judge in shot.scores} - set(every))
    if some:
        logger.warning("not shown, as only some pictures have their score: %s", ", ".join(some))
    return every


def _more(found: Sequence[object]) -> str:
    return f" (and {len(found) - 1} more)" if len(found) > 1 else ""
