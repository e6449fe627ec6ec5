"""An evaluation from its options to its files."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from rich.console import Console

from diffalign.evaluate.asked import Asked
from diffalign.evaluate.contamination import check_prompts
from diffalign.evaluate.details import Details
from diffalign.evaluate.draw import sweep
from diffalign.evaluate.generate import Noise, Sampling
from diffalign.evaluate.image_statistics import NAMES
from diffalign.evaluate.models import (
    BASE,
    Model,
    locate,
    read_model,
    read_models,
    run_base,
    sampler_name,
    with_people,
)
from diffalign.evaluate.output import write_all
from diffalign.evaluate.prompts import EvalPrompt, part_of, read_prompts
from diffalign.evaluate.report import Report
from diffalign.evaluate.request import Request, RequestError, claimed, scorer_name, settle
from diffalign.evaluate.sections import merged, sections
from diffalign.evaluate.studies import read_shift
from diffalign.evaluate.summary import Analysis, Judged, judge_table, report_of
from diffalign.evaluate.table import table_of
from diffalign.evaluate.work import work
from diffalign.label.judges import refuse_prompts, refuse_unknown
from diffalign.policy.precision import DTYPES

logger = logging.getLogger(__name__)

PartAsked = Literal["report", "select", "all"]


@dataclass(frozen=True, kw_only=True)
class Found:
    """An evaluation and its report."""

    judged: Judged
    report: Report


def lone_run(asked: Asked) -> Path | None:
    """The run folder, where a command names one and no file of prompts: its recipe then says the rest.

    Raises:
        RequestError: one model that is no run folder.
    """
    if len(asked.models) != 1 or (asked.prompts and not asked.prompts.isdecimal()):
        return None
    if asked != Asked(models=asked.models, prompts=asked.prompts, seeds=asked.seeds):
        raise RequestError(
            "a run alone is evaluated as its recipe says, and only --seeds and a number of --prompts change "
            "that: add --prompts FILE for options of your own"
        )
    return Path(asked.models[0])


def evaluate_models(asked: Asked) -> Found:
    """Make what is missing, judge it, and write results.jsonl, report.json, report.md, plots and gallery.

    Raises:
        RequestError: something that cannot be done as asked; nothing is written then.
        ContaminationError: prompts that were trained on.
    """
    request, notes = request_of(asked)
    with claimed(request.output) as lock:
        settle(request)
        work(request, asked.processes, lock)
        sweep(request.output)
        judged = judge_table(table_of(request), analysis_of(asked))
        settings = Details(settings=settings_of(request, asked), notes=notes)
        report = report_of(judged, merged(settings, sections(request, asked, judged)))
        write_all(request, judged, report, Console())
    return Found(judged=judged, report=report)


def analysis_of(asked: Asked) -> Analysis:
    """How the table is to be judged."""
    return Analysis(
        primary=asked.primary or scorer_name(asked.scorers[0]),
        trained_on=tuple(map(scorer_name, asked.trained_on)),
        tie_margin_sd=asked.tie_margin,
    )


def request_of(asked: Asked) -> tuple[Request, list[str]]:
    """What is to be made, with notes on prompts that were trained on and allowed.

    Raises:
        RequestError: an option that cannot be.
    """
    check_options(asked)
    models = with_people(models_of(asked), asked.people)
    prompts = prompts_of(asked)
    notes = check_prompts(prompts, models, asked.used, asked.allow_contaminated)
    sampling = Sampling(
        steps=asked.steps, guidance=asked.guidance, side=asked.side or None, batch=asked.batch,
        noise=cast(Noise, asked.noise),
    )  # fmt: skip
    refuse_unknown([*asked.scorers, *asked.trained_on, *asked.sets])
    refuse_prompts([*asked.scorers, *asked.trained_on], [p.prompt for p in prompts])
    first = asked.primary or next(map(scorer_name, asked.scorers), "")
    request = Request(
        models=tuple(models), prompts=tuple(prompts), trained_on=asked.trained_on, sets=asked.sets,
        scorers=tuple(sorted(asked.scorers, key=lambda spec: scorer_name(spec) != first)),
        seeds=asked.seeds or 4, shifts=asked.shift, smoothness=asked.smoothness, output=asked.output,
        sampling=sampling, precision=asked.precision, text_length=asked.text_length,
    )  # fmt: skip
    return request, notes


def check_options(asked: Asked) -> None:
    """Refuse options that cannot be.

    Raises:
        RequestError: as said.
    """
    if asked.noise not in get_args(Noise):
        raise RequestError(f"noise is {asked.noise!r}: it must be own or shared")
    if asked.precision not in DTYPES:
        raise RequestError(f"precision is {asked.precision!r}: it must be one of {', '.join(DTYPES)}")
    for text in asked.shift:
        read_shift(text)
    if 0 < asked.smoothness < 3:
        raise RequestError(f"smoothness is {asked.smoothness}: a path needs 3 pictures or more")
    known = [*NAMES, *map(scorer_name, (*asked.scorers, *asked.trained_on))]
    unknown = next((name for name in asked.control if name not in known), None)
    if unknown is not None:
        raise RequestError(f"--control {unknown!r} is none of {', '.join(known)}")
    if asked.primary and asked.primary not in map(scorer_name, asked.scorers):
        raise RequestError(f"the primary scorer {asked.primary!r} is none of --scorers")


def models_of(asked: Asked) -> list[Model]:
    """Models, the base first; of a run alone its own base."""
    if not asked.models:
        raise RequestError("name the base and at least one aligned model, or a run folder")
    if len(asked.models) > 1:
        return read_models(asked.models)
    (run,) = (read_model(m) for m in asked.models)
    if run.kind != "run":
        raise RequestError(f"{run.path} is no run folder: name the base first, then what is compared with it")
    return [Model(name=BASE, path=run_base(run), kind="pipeline"), run]


def prompts_of(asked: Asked) -> list[EvalPrompt]:
    """Prompts of the part that is asked for.

    Raises:
        RequestError: no file, another part, or none left.
    """
    if not asked.prompts:
        raise RequestError("--prompts is missing: name a file of prompts (.txt, .jsonl, .csv, .tsv, ...)")
    if asked.part not in get_args(PartAsked):
        raise RequestError(f"part is {asked.part!r}: it must be report, select or all")
    every = read_prompts(locate(asked.prompts))
    found = [p for p in every if asked.part in ("all", part_of(p.prompt))]
    found = found[: asked.limit] if asked.limit else found
    if not found:
        raise RequestError(
            f"none of the {len(every)} prompts of {asked.prompts} is for {asked.part}: --part all"
        )
    if len(found) < len(every):
        cut = f", --limit {asked.limit}" if asked.limit else ""
        logger.warning("%d of %d prompts are taken (--part %s%s)", len(found), len(every), asked.part, cut)
    return found


def settings_of(request: Request, asked: Asked) -> dict[str, object]:
    """How the pictures were made, for the report."""
    s = request.sampling
    return {
        "models": {m.name: m.path for m in request.models}, "prompts": asked.prompts, "part": asked.part,
        "seeds": request.seeds, "steps": s.steps, "guidance": s.guidance, "side": s.side, "noise": s.noise,
        "sampler": sampler_name(request.models[0]),
        "precision": request.precision, "primary": asked.primary or scorer_name(request.scorers[0]),
    }  # fmt: skip
