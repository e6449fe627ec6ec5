"""From a table of measurements to a report."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from diffalign.evaluate.details import Details, Metric, Range, as_range
from diffalign.evaluate.report import Report, ReportError, Verdict, build_report
from diffalign.evaluate.stats import (
    ALPHA,
    Comparison,
    Floats,
    Interval,
    base_sd,
    bootstrap,
    compare,
    holm,
    widened,
)
from diffalign.evaluate.table import Table, by_category


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """How a table is judged."""

    primary: str
    """Held-out scorer that decides; named before looking."""
    trained_on: tuple[str, ...] = ()
    tie_margin_sd: float = 0.25
    resamples: int = 2000
    flips: int = 10_000


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A table with the verdicts of all scorers on all models."""

    table: Table
    analysis: Analysis
    units: dict[str, float]
    """By scorer: s.d. that gains are counted in."""
    verdicts: list[Verdict]
    """The primary scorer's first, model by model."""
    notes: list[str]


def judge_table(table: Table, analysis: Analysis) -> Judged:
    """Compare every model with the base by every scorer.

    Raises:
        ReportError: the primary scorer is none of the held-out ones.
    """
    held_out = [name for name in table.scores if name not in analysis.trained_on]
    if analysis.primary not in held_out:
        raise ReportError(
            f"the primary scorer {analysis.primary!r} is none of the held-out ones: {', '.join(held_out)}"
        )
    notes: list[str] = []
    units = {name: _unit(scores[0], name, notes) for name, scores in table.scores.items()}
    order = [analysis.primary, *(name for name in table.scores if name != analysis.primary)]
    verdicts = [
        Verdict(
            model=table.models[i],
            metric=name,
            held_out=name in held_out,
            comparison=_compare(table.scores[name], i, units[name], analysis),
        )
        for name in order
        for i in range(1, len(table.models))
    ]
    return Judged(table=table, analysis=analysis, units=units, verdicts=verdicts, notes=notes)


def _compare(scores: Floats, model: int, unit: float, analysis: Analysis) -> Comparison:
    return compare(
        scores[0],
        scores[model],
        sd=unit,
        tie_margin_sd=analysis.tie_margin_sd,
        resamples=analysis.resamples,
        flips=analysis.flips,
    )


def _unit(base: Floats, name: str, notes: list[str]) -> float:
    """The base's seed-to-seed s.d., or 1 where its seeds do not differ."""
    if np.ptp(base, axis=1).max() == 0:
        notes.append(f"{name}: all seeds of the base score alike, so gains are in the scorer's own units")
        return 1.0
    return base_sd(base)


def report_of(judged: Judged, extra: Details) -> Report:
    """The report, with its details; sections of ``extra`` are added to those that are always there."""
    table = judged.table
    notes = [*judged.notes, *_disagreements(judged), *extra.get("notes", [])]
    details = Details(
        metrics=metrics(judged),
        categories=categories(judged),
        statistics=drift(table, judged.analysis),
        worst_category=worst_category(table),
    )
    report = build_report(
        base=table.models[0],
        verdicts=judged.verdicts,
        diversity={
            name: {k: float(v[i].mean()) for k, v in table.diversity.items()} for i, name in _named(table)
        },
        obedience={}
        if table.obedience is None
        else {name: float(table.obedience[i].mean()) for i, name in _named(table)},
    )
    kept = {key: value for key, value in {**details, **extra, "notes": notes}.items() if value}
    report["details"] = Details(**kept)  # type: ignore[typeddict-item]
    return report


def _named(table: Table) -> list[tuple[int, str]]:
    """Numbers and names of the models; the base is always called so in these sections."""
    return [(i, name if i else "base") for i, name in enumerate(table.models)]


def metrics(judged: Judged) -> list[Metric]:
    """What belongs to each comparison beside the columns of the report."""
    adjusted = _holm(judged)
    return [_metric(v, p) for v, p in zip(judged.verdicts, adjusted, strict=True)]


def _metric(verdict: Verdict, p_holm: float | None) -> Metric:
    found = verdict.comparison
    return Metric(
        model=verdict.model,
        metric=verdict.metric,
        decided=found.win_rate.decided,
        clustered=clustered(found.win_rate, found.win_rate.standard_error, found.prompts),
        agrees=found.win_rate.agrees,
        mean_gain_sd=as_range(found.mean_gain_sd),
        regression_rate=as_range(found.regression_rate),
        p_holm=p_holm,
    )


def _holm(judged: Judged) -> list[float | None]:
    """Adjusted p-values: over the models by the primary scorer, and over all other held-out comparisons."""
    primary = judged.analysis.primary
    out: list[float | None] = [None] * len(judged.verdicts)
    for first in (True, False):
        rows = [i for i, v in enumerate(judged.verdicts) if v.held_out and (v.metric == primary) == first]
        values = holm([judged.verdicts[i].comparison.p_value for i in rows]) if rows else []
        for i, p in zip(rows, values, strict=True):
            out[i] = p
    return out


def clustered(value: Interval, standard_error: float, prompts: int) -> Range:
    """Interval of an estimate by its standard error over prompts, with Student's t."""
    half = t_quantile(1 - ALPHA / 2, prompts - 1) * standard_error
    return Range(value=value.value, low=value.value - half, high=value.value + half)


def t_quantile(p: float, freedom: int) -> float:
    """Quantile of Student's t by the expansion about the normal one (Abramowitz and Stegun 26.7.5).

    Right to 1 % from 3 degrees of freedom on, to 0.01 % from 10 on.
    """
    z, n = NormalDist().inv_cdf(p), freedom
    g1 = (z**3 + z) / 4
    g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    g4 = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
    return z + g1 / n + g2 / n**2 + g3 / n**3 + g4 / n**4


def _disagreements(judged: Judged) -> list[str]:
    return [
        f"{v.model}, {v.metric}: the bootstrap and the clustered standard error differ by more than a "
        "quarter in width; a few prompts decide this win rate"
        for v in judged.verdicts
        if not v.comparison.win_rate.agrees
    ]


def categories(judged: Judged) -> dict[str, dict[str, Range]]:
    """Win rate by the primary scorer, by model and category; categories of one prompt have no interval and
    are left out. Empty where there is one category only.
    """
    table, name = judged.table, judged.analysis.primary
    groups = by_category(table.prompts, lambda p: p.category)
    if len(groups) < 2:
        return {}
    scores, margin = table.scores[name], judged.analysis.tie_margin_sd * judged.units[name]
    return {
        model: {
            group: as_range(win_rate(scores[0, rows], scores[i, rows], margin))
            for group, rows in groups.items()
            if len(rows) > 1
        }
        for i, model in enumerate(table.models)
        if i
    }


def win_rate(base: Floats, model: Floats, margin: float) -> Interval:
    """Win rate of paired (P, S) scores, prompts resampled."""
    gain = model - base
    won = 0.5 + 0.5 * ((gain > margin).astype(float) - (gain < -margin))
    return widened(bootstrap(won.mean(1, keepdims=True))[0], len(won))


def drift(table: Table, analysis: Analysis) -> dict[str, dict[str, Range]]:
    """How far image statistics moved from the base's, in its s.d. over all pictures, by model."""
    found: dict[str, dict[str, Range]] = {}
    for i, model in enumerate(table.models):
        if i:
            names = list(table.statistics)
            moved = [_in_sd(table.statistics[n][0], table.statistics[n][i]).mean(1) for n in names]
            intervals = bootstrap(np.stack(moved, 1), resamples=analysis.resamples)
            found[model] = {n: as_range(x) for n, x in zip(names, intervals, strict=True)}
    return found


def _in_sd(base: Floats, model: Floats) -> Floats:
    spread = float(base.std(ddof=1))
    return (model - base) / (spread if spread > 0 else math.inf)


def worst_category(table: Table) -> dict[str, dict[str, object]]:
    """By model: the category that has lost most diversity, and the share of the base's that is left."""
    groups = by_category(table.prompts, lambda p: p.category)
    found: dict[str, dict[str, object]] = {}
    for name, values in table.diversity.items():
        for i, model in enumerate(table.models):
            shares = {
                g: float(values[i, r].mean() / values[0, r].mean())
                for g, r in groups.items()
                if values[0, r].mean() > 0
            }
            if i and len(shares) > 1:
                worst = min(shares, key=lambda g: shares[g])
                found.setdefault(model, {})[name] = {"category": worst, "left": shares[worst]}
    return found
