"""The details of a report as tables, for the terminal and for report.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from diffalign.evaluate.details import Details, Range, Standing
from diffalign.evaluate.report import Report

BY_MODEL = Mapping[str, Mapping[str, Range]]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """One table."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]


def shown(found: Range, form: str = ".3f") -> str:
    """An estimate with its interval."""
    return f"{found['value']:{form}} [{found['low']:{form}}, {found['high']:{form}}]"


def grids(report: Report) -> list[Grid]:
    """Tables of all sections that are there; intervals are of 95 % and resample prompts."""
    details = report.get("details", Details())
    found = [_metrics(details)]
    found.append(_by_model("win rate by category", details.get("categories", {})))
    title = "change of image statistics, in s.d. of the base's pictures"
    found.append(_by_model(title, details.get("statistics", {}), "+.2f"))
    found.append(_standings("standings by the primary scorer", details.get("league", [])))
    found.append(_seeds(details))
    found += [
        _facets(f"right by {scorer}", models) for scorer, models in sorted(details.get("facets", {}).items())
    ]
    title = "change of the primary score under changed initial noise, in s.d."
    found.append(_by_model(title, details.get("brittleness", {}), "+.2f"))
    smooth = {model: {"ISTD": found} for model, found in details.get("smoothness", {}).items()}
    found.append(_by_model("latent smoothness", smooth, ".4f"))
    found += _people(details)
    return [grid for grid in found if grid.rows]


def lines(report: Report) -> list[str]:
    """What is no table: where diversity fell most, seeds that stand out, notes."""
    details = report.get("details", Details())
    found = [
        f"diversity, {model}: least is left in {worst['category']} ({worst['left']:.0%} of the base's {name})"
        for model, rows in details.get("worst_category", {}).items()
        for name, worst in rows.items()
    ]
    if "seeds" in details:
        seeds = (("fail", details["seeds"]["fail"]), ("excel", details["seeds"]["excel"]))
        found += [f"seeds that {n} across prompts: {', '.join(map(str, s))}" for n, s in seeds if s]
    return found + [f"note: {note}" for note in details.get("notes", [])]


def _metrics(details: Details) -> Grid:
    rows, covariates = [], ""
    for metric in details.get("metrics", []):
        equal = metric.get("controlled")
        covariates = ", ".join(equal["covariates"]) if equal else covariates
        rows.append(
            (
                f"{metric['model']}: {metric['metric']}",
                shown(metric["clustered"]),
                f"{metric['decided']:.3f}",
                shown(metric["mean_gain_sd"], "+.2f"),
                shown(metric["regression_rate"], ".2f"),
                "" if metric["p_holm"] is None else f"{metric['p_holm']:.4f}",
                shown(equal) if equal else "",
            )
        )
    header = ("judge", "clustered", "of decided", "gain in s.d.", "regressed", "p (Holm)")
    last = (f"at equal {covariates}",) if covariates else ()
    cut = len(header) + len(last)
    return Grid(title="comparisons in detail", header=(*header, *last), rows=[row[:cut] for row in rows])


def _by_model(title: str, found: BY_MODEL, form: str = ".3f") -> Grid:
    """A row for each key, a column for each model."""
    keys = list(dict.fromkeys(key for rows in found.values() for key in rows))
    rows = [(key, *(shown(r[key], form) if key in r else "" for r in found.values())) for key in keys]
    return Grid(title=title, header=("", *found), rows=rows)


def _standings(title: str, rows: Sequence[Standing]) -> Grid:
    ordered = sorted(rows, key=lambda row: row["rank"])
    return Grid(
        title=f"{title} (Bradley-Terry with Davidson's ties, weak prior 0.1)",
        header=("rank", "model", "log-strength minus the base's", "ranks"),
        rows=[
            (str(r["rank"]), r["model"], shown(r["gain"], "+.2f"), f"{r['rank_low']} to {r['rank_high']}")
            for r in ordered
        ],
    )


def _seeds(details: Details) -> Grid:
    if "seeds" not in details:
        return Grid(title="", header=(), rows=[])
    seeds = details["seeds"]
    return Grid(
        title=f"pictures that fail by {seeds['metric']}",
        header=("model", "pictures", "every seed of a prompt", "some seeds of a prompt"),
        rows=[
            (model, shown(found["fail"]), f"{found['every_seed']:.1%}", f"{found['some_seeds']:.1%}")
            for model, found in seeds["models"].items()
        ],
    )


def _facets(title: str, models: Mapping[str, BY_MODEL]) -> Grid:
    flat = {
        model: {f"{facet} {value}": found for facet, rows in facets.items() for value, found in rows.items()}
        for model, facets in models.items()
    }
    return _by_model(title, flat, ".2f")


def _people(details: Details) -> list[Grid]:
    votes = details.get("votes", {})
    rows: list[tuple[str, ...]] = [
        (
            model,
            shown(cast(Range, row["win_rate"])),
            f"{row['wins']}/{row['ties']}/{row['losses']}",
            str(row["both_bad"]),
        )
        for model, row in votes.get("models", {}).items()
    ]
    return [
        Grid(
            title=f"people, {votes.get('raters', 0)} raters",
            header=("model", "win rate", "W/T/L", "of them both bad"),
            rows=rows,
        ),
        _standings("standings by votes", votes.get("league", [])),
        _calibration(details),
    ]


def _calibration(details: Details) -> Grid:
    found = details.get("calibration", [])
    models = list(dict.fromkeys(model for row in found for model in row["bias"]))
    return Grid(
        title="scorers against votes: decided alike, and win rate minus people's",
        header=("scorer", "votes", "alike", *models),
        rows=[
            (
                row["metric"],
                str(row["votes"]),
                shown(row["accuracy"]),
                *(shown(row["bias"][m], "+.3f") if m in row["bias"] else "" for m in models),
            )
            for row in found
        ],
    )
