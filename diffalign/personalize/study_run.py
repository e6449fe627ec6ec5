"""A study of people from its file to its page; every run and every kind of picture is made once and kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from diffalign.config import load
from diffalign.personalize.metrics import compare_people
from diffalign.personalize.study import MAIN, PipelineStudy, Study, StudyOptions
from diffalign.personalize.study_figures import figures, main_figures, make_jury, rate_json
from diffalign.personalize.study_page import write_page


@dataclass(frozen=True, kw_only=True)
class StudyFile:
    """training/people.yaml."""

    pipelines: dict[str, PipelineStudy]
    """By name."""
    common: dict[str, Any] = field(default_factory=dict)
    """What the recipes of the first stage share."""
    measured: StudyOptions = field(default_factory=StudyOptions)
    """What is measured."""


def run_study(
    file: Path,
    *,
    runs: Path,
    out: Path,
    only: Sequence[str] = (),
    loras: bool = True,
    page_only: bool = False,
) -> str:
    """Train, draw and measure what is missing, then write the page.

    Args:
        file: see StudyFile.
        runs: folder of runs and pictures.
        out: page without its ending; its JSON keeps the pipelines that are not run now.
        only: pipelines to run; none named is all.
        loras: also the baseline of one LoRA for each person.
        page_only: run nothing, and only write the page from its JSON.

    Returns:
        One line that says what is there.

    Raises:
        ConfigError: the file is wrong.
        ValueError: no such pipeline.
    """
    from diffalign.league.config import merged

    study = load(StudyFile, file)
    unknown = sorted(set(only) - set(study.pipelines))
    if unknown:
        raise ValueError(f"no pipeline {unknown[0]!r} in {file}; it has {', '.join(study.pipelines)}")
    before = out.with_suffix(".json")
    found: dict[str, Any] = json.loads(before.read_text()) if before.exists() else {}
    for name, recipes in study.pipelines.items():
        if page_only or (only and name not in only):
            continue
        whole = replace(recipes, everybody=merged(study.common, recipes.everybody))
        found[name] = measure(
            Study(name=name, recipes=whole, options=study.measured, root=runs / name), loras
        )
        write_page(found, out)  # what is there is not lost where the next one fails
    write_page(found, out)
    return f"{', '.join(found) or 'nothing'} measured; {out}.md"


def measure(study: Study, loras: bool) -> dict[str, Any]:
    """Figures of one pipeline."""
    cost = study.train()
    pictures = study.pictures(study.studio())
    jury = make_jury(study.people, study.prompts, pictures["base"])
    found = figures(jury, pictures, study.options.votes, MAIN)
    if study.prompts != study.all_prompts:
        wide = study.main_pictures(study.studio(every=True))
        jury_of_all = make_jury(study.people, study.all_prompts, wide["base"])
        found["all_prompts"] = main_figures(jury_of_all, wide, MAIN)
    if loras:
        names = study.train_loras()
        shown = study.lora_pictures(names)
        own = jury.own(study.people.unseen, pictures[f"votes-{MAIN}"])
        theirs = {n: jury.scores([n], shown[n])[n] for n in names}
        votes = study.people.votes
        found["rates"][f"one LoRA for each, of {votes} votes"] = rate_json(jury.over_base(theirs))
        found["rates"]["single people over one LoRA for each"] = rate_json(
            compare_people({n: own[n] for n in names}, theirs, {n: jury.sd[n] for n in names})
        )
        cost |= {"one LoRA each": study.lora_seconds(names)}
    return found | {
        "cost": cost,
        "population": asdict(study.people),
        "pictures": len(study.prompts),
        "amounts": list(study.options.amounts),
        "user_guidance": study.recipes.user_guidance,
    }
