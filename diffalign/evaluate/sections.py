"""Sections of a report's details that depend on what was asked."""

from __future__ import annotations

import numpy as np

from diffalign.evaluate.asked import Asked
from diffalign.evaluate.control import ControlError, win_rate_at_equal
from diffalign.evaluate.details import Controlled, Details, Range, as_range
from diffalign.evaluate.facets import facet_tables
from diffalign.evaluate.people import calibration, read_ballot, win_rates
from diffalign.evaluate.request import Request
from diffalign.evaluate.seeds import seeds_of
from diffalign.evaluate.standings import duels_of, named_standings
from diffalign.evaluate.stats import ALPHA, Floats, bootstrap
from diffalign.evaluate.studies import study_scores
from diffalign.evaluate.summary import Judged, metrics, t_quantile
from diffalign.evaluate.table import rows_of


def merged(first: Details, second: Details) -> Details:
    """Both, with the notes of both."""
    out = Details(**{**first, **second})
    out["notes"] = [*first.get("notes", []), *second.get("notes", [])]
    return out


def sections(request: Request, asked: Asked, judged: Judged) -> Details:
    """All sections beside those that ``summary.report_of`` always writes.

    Raises:
        VoteError: votes that cannot be used.
    """
    table, primary = judged.table, judged.analysis.primary
    found = Details(
        seeds=seeds_of(table, primary, judged.units, request.sampling.noise), facets=facet_tables(table)
    )
    if len(table.models) > 2:
        margin = judged.analysis.tie_margin_sd * judged.units[primary]
        found["league"] = named_standings(duels_of(table.scores[primary], margin), table.models)
    for part in (_controlled(asked, judged), _studied(request, judged), _voted(request, asked, judged)):
        found = merged(found, part)
    return found


def _controlled(asked: Asked, judged: Judged) -> Details:
    """Rows of metrics with the win rate at equal covariates, and why where there is none."""
    if not asked.control:
        return Details()
    rows, notes = metrics(judged), list[str]()
    for row in rows:
        names = [name for name in asked.control if name != row["metric"]]
        try:
            row["controlled"] = _at_equal(judged, row["model"], row["metric"], names)
        except ControlError as error:
            notes.append(f"{row['model']}, {row['metric']}: no win rate at equal {', '.join(names)}: {error}")
    return Details(metrics=rows, notes=notes)


def _at_equal(judged: Judged, model: str, metric: str, names: list[str]) -> Controlled:
    table, number = judged.table, judged.table.models.index(model)
    gain = table.scores[metric][number] - table.scores[metric][0]
    margin = judged.analysis.tie_margin_sd * judged.units[metric]
    outcomes = 0.5 + 0.5 * ((gain > margin).astype(float) - (gain < -margin))
    known = {**table.scores, **table.statistics}
    differences = {name: known[name][number] - known[name][0] for name in names}
    quantile = t_quantile(1 - ALPHA / 2, len(outcomes) - 1)
    found = win_rate_at_equal(outcomes, differences, quantile)
    return Controlled(value=found.value, low=found.low, high=found.high, covariates=names)


def _studied(request: Request, judged: Judged) -> Details:
    """Brittleness and smoothness."""
    table, primary = judged.table, judged.analysis.primary
    shifts = {label: study_scores(request, label) for label in request.shifts}
    found = Details()
    if shifts:
        found["brittleness"] = {
            model: {
                label: _mean((moved[i] - table.scores[primary][i]) / judged.units[primary])
                for label, moved in shifts.items()
            }
            for i, model in enumerate(table.models)
        }
    if request.smoothness:
        paths = study_scores(request, "path")
        found["smoothness"] = {model: _mean(paths[i]) for i, model in enumerate(table.models)}
    return found


def _mean(values: Floats) -> Range:
    """Mean of (P, S) values, prompts resampled."""
    return as_range(bootstrap(values.mean(1, keepdims=True))[0])


def _voted(request: Request, asked: Asked, judged: Judged) -> Details:
    """People's win rates, and the scorers against them."""
    if not asked.votes:
        return Details()
    table = judged.table
    ballot = read_ballot(asked.votes, rows_of(request, table))
    margins = {name: judged.analysis.tie_margin_sd * unit for name, unit in judged.units.items()}
    found = Details(votes=win_rates(ballot, table.models))
    if np.isin(ballot.outcome, (0.0, 1.0)).any():
        found["calibration"] = [
            calibration(ballot, name, table.models, margins[name]) for name in table.scores
        ]
    if ballot.left_out:
        found["notes"] = [f"{ballot.left_out} votes are on other pictures, and left out"]
    return found
