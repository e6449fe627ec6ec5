"""The details of a report as lines of text, and report.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from diffalign.evaluate.details import Calibration, Details, Metric, Range, Seeds, Standing
from diffalign.evaluate.report import Report, markdown_table


def shown(found: Range, form: str = ".3f") -> str:
    """An estimate with its interval."""
    return f"{found['value']:{form}} [{found['low']:{form}}, {found['high']:{form}}]"


def detail_lines(report: Report) -> list[str]:
    """What the table of comparisons does not say, a line each; headings end in a colon."""
    details = report.get("details", Details())
    lines = [line for metric in details.get("metrics", []) for line in _metric(metric)]
    lines += _nested("win rate by category", details.get("categories", {}))
    lines += _nested("image statistics, change in s.d. of the base", details.get("statistics", {}), "+.2f")
    for model, worst in details.get("worst_category", {}).items():
        lines += [
            f"diversity, {model}: least is left in {w['category']} ({w['left']:.0%} of the base's {name})"
            for name, w in worst.items()
        ]
    lines += _league("standing by the primary scorer", details.get("league", []))
    if "seeds" in details:
        lines += _seeds(details["seeds"])
    lines += _facets(details)
    lines += _nested(
        "primary score under changed initial noise, in s.d.", details.get("brittleness", {}), "+.2f"
    )
    smooth = details.get("smoothness", {})
    lines += [f"latent smoothness (ISTD), {model}: {shown(found, '.4f')}" for model, found in smooth.items()]
    lines += _votes(details)
    lines += [_calibration(row) for row in details.get("calibration", [])]
    return lines + [f"note: {note}" for note in details.get("notes", [])]


def _metric(metric: Metric) -> list[str]:
    holm = "" if metric["p_holm"] is None else f", p (Holm) {metric['p_holm']:.4f}"
    lines = [
        f"{metric['model']}, {metric['metric']}: clustered {shown(metric['clustered'])}, decided "
        f"{metric['decided']:.3f}, gain {shown(metric['mean_gain_sd'], '+.2f')} s.d., regressed "
        f"{shown(metric['regression_rate'], '.2f')}{holm}"
    ]
    if "controlled" in metric:
        found = metric["controlled"]
        names = ", ".join(found["covariates"])
        lines.append(f"{metric['model']}, {metric['metric']}: win rate at equal {names}: {shown(found)}")
    return lines


def _nested(title: str, found: Mapping[str, Mapping[str, Range]], form: str = ".3f") -> list[str]:
    return [
        f"{title}, {model}: " + ", ".join(f"{name} {shown(x, form)}" for name, x in rows.items())
        for model, rows in found.items()
        if rows
    ]


def _league(title: str, rows: Sequence[Standing]) -> list[str]:
    ordered = sorted(rows, key=lambda row: row["rank"])
    return [f"{title} (log-strength minus the base's, weak prior 0.1):"] * bool(rows) + [
        f"  {row['rank']}. {row['model']} {shown(row['gain'], '+.2f')}, rank {row['rank_low']} to "
        f"{row['rank_high']}"
        for row in ordered
    ]


def _seeds(seeds: Seeds) -> list[str]:
    lines = [
        f"seeds that fail by {seeds['metric']}, {model}: {shown(found['fail'])} of the pictures; every seed "
        f"of {found['every_seed']:.1%} of the prompts, some of {found['some_seeds']:.1%}"
        for model, found in seeds["models"].items()
    ]
    for name, numbers in (("fail", seeds["fail"]), ("excel", seeds["excel"])):
        if numbers:
            lines.append(f"seeds that {name} across prompts: {', '.join(map(str, numbers))}")
    return lines


def _facets(details: Details) -> list[str]:
    return [
        f"{scorer}, {model}, by {facet}: "
        + ", ".join(f"{value} {shown(x, '.2f')}" for value, x in rows.items())
        for scorer, models in details.get("facets", {}).items()
        for model, facets in models.items()
        for facet, rows in facets.items()
    ]


def _votes(details: Details) -> list[str]:
    votes = details.get("votes", {})
    lines = [
        f"people ({votes['raters']} raters), {model}: win rate {shown(cast(Range, row['win_rate']))}, W/T/L "
        f"{row['wins']}/{row['ties']}/{row['losses']}, both bad {row['both_bad']}"
        for model, row in votes.get("models", {}).items()
    ]
    return lines + _league("standing by votes", votes.get("league", []))


def _calibration(row: Calibration) -> str:
    bias = ", ".join(f"{model} {shown(x, '+.3f')}" for model, x in row["bias"].items())
    return (
        f"{row['metric']} against {row['votes']} decided votes: decides alike {shown(row['accuracy'])}; win "
        f"rate minus people's: {bias or 'no votes against the base'}"
    )


def markdown_report(report: Report, plots: Sequence[str]) -> str:
    """report.md: the table, the details, the plots, how it was made."""
    details = report.get("details", Details())
    lines = ["# Evaluation", "", markdown_table(report), "## Details", ""]
    lines += [f"* {_escaped(line)}" for line in detail_lines(report)]
    if plots:
        lines += ["", "## Plots", "", *(f"![{name}](plots/{name})" for name in plots)]
    lines += ["", "## How", ""]
    lines += [f"* {key}: `{value}`" for key, value in details.get("settings", {}).items()]
    lines += [f"* {key} {value}" for key, value in report["versions"].items()]
    return "\n".join(lines) + "\n"


def _escaped(line: str) -> str:
    return line.replace("|", "\\|").replace("<", "&lt;")
