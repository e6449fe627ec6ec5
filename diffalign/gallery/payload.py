"""What the gallery's page is given: prompts with pictures and scores, the figures over them, and the hash."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np

from diffalign.evaluate.report import ComparisonRow, Report, Verdict, build_report, check_report
from diffalign.evaluate.stats import base_sd, compare
from diffalign.votes.rows import gallery_id

logger = logging.getLogger(__name__)

_REPORTED = ("prompts", "seeds_per_prompt", "obedience", "diversity")
TIE_MARGIN_SD = 0.25
"""Of a gallery without a report."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One prompt as the page shows it; M models (the base first) and S seeds."""

    prompt_id: str
    prompt: str
    category: str = ""
    challenge: str = ""
    width: int
    """Of the first picture, in pixels."""
    height: int
    sources: Sequence[Sequence[str]]
    """(M, S) data URIs, or paths relative to the page."""
    sha256: Sequence[Sequence[str]]
    """(M, S), of the pictures' files."""
    scores: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    """By judge, (M, S), higher is better."""


@dataclass(frozen=True, kw_only=True)
class Content:
    """All that a gallery shows."""

    models: Sequence[str]
    """The base first."""
    seeds: Sequence[int]
    entries: Sequence[Entry]


def gallery_hash(content: Content) -> str:
    """Name of a gallery in votes, see ``Vote.gallery``."""
    places = product(content.entries, enumerate(content.models), enumerate(content.seeds))
    return gallery_id((name, e.prompt_id, seed, e.sha256[m][s]) for e, (m, name), (s, seed) in places)


def payload(content: Content, report: Report | None, title: str) -> dict[str, Any]:
    """Return what the page's script reads, ready for JSON.

    Raises:
        ValueError: no prompts, or a report whose base is another model than the first.
    """
    if not content.entries:
        raise ValueError("a gallery needs at least one prompt: the results are empty")
    report = None if report is None else check_report(report)
    if report is not None and report["base"] != content.models[0]:
        raise ValueError(
            f"the report's base is {report['base']!r} but the first model is {content.models[0]!r}: "
            "put it first"
        )
    units = {judge: _reported_unit(report, judge) or _unit(content, judge) for judge in _judges(content)}
    return {
        "title": title or ", ".join(content.models),
        "gallery": gallery_hash(content),
        "models": list(content.models),
        "seeds": list(content.seeds),
        "judges": [
            {"name": name, "sd": sd, "trained": _trained_on(name, report)} for name, sd in units.items()
        ],
        "margin": TIE_MARGIN_SD if report is None else report["tie_margin_sd"],
        "rows": [_row(entry, list(units)) for entry in content.entries],
        "table": _table(content, units) if report is None else report["comparisons"],
        "report": report and {key: value for key, value in report.items() if key in _REPORTED},
    }


def _judges(content: Content) -> list[str]:
    return list(content.entries[0].scores)


def _row(entry: Entry, judges: Sequence[str]) -> dict[str, Any]:
    return {
        "id": entry.prompt_id,
        "prompt": entry.prompt,
        "category": entry.category,
        "challenge": entry.challenge,
        "width": entry.width,
        "height": entry.height,
        "images": entry.sources,
        "sha256": entry.sha256,
        "scores": [[list(map(float, s)) for s in entry.scores[judge]] for judge in judges],
    }


def _scores(content: Content, judge: str, model: int) -> np.ndarray:
    """(P, S)."""
    return np.array([entry.scores[judge][model] for entry in content.entries], dtype=float)


def _reported_unit(report: Report | None, judge: str) -> float | None:
    """The unit that the report counted in, from all its prompts; the page may show only some of them."""
    for row in report["comparisons"] if report else []:
        if row["metric"] == judge and row["mean_gain_sd"]:
            return row["mean_gain"] / row["mean_gain_sd"]
    return None


def _unit(content: Content, judge: str) -> float | None:
    """Seed-to-seed s.d. of the base, as in the report; None where there is none: gains then stay raw."""
    try:
        return base_sd(_scores(content, judge, 0))
    except ValueError:
        logger.info("%s: the base has no spread between seeds, so gains are shown in raw units", judge)
        return None


def _trained_on(judge: str, report: Report | None) -> bool:
    return any(
        row["metric"] == judge and not row["held_out"] for row in (report["comparisons"] if report else [])
    )


def _table(content: Content, units: Mapping[str, float | None]) -> list[ComparisonRow]:
    """Comparisons of every model and judge with the base, where no report brings them."""
    if len(content.entries) < 2:
        return []  # one prompt has no interval
    return [
        _compared(content, judge, sd, m) for judge, sd in units.items() for m in range(1, len(content.models))
    ]


def _compared(content: Content, judge: str, sd: float | None, m: int) -> ComparisonRow:
    """One line; without a unit the gain is raw and any difference decides."""
    base, model = _scores(content, judge, 0), _scores(content, judge, m)
    margin = 0.0 if sd is None else TIE_MARGIN_SD
    found = compare(base, model, sd=sd or 1.0, tie_margin_sd=margin)
    verdict = Verdict(model=content.models[m], metric=judge, held_out=True, comparison=found)
    return build_report(base=content.models[0], verdicts=[verdict], versions={})["comparisons"][0]
