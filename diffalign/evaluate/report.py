"""``report.json``: what an evaluation found, written, read back, and shown as a table."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, cast

from rich.console import Console
from rich.table import Table
from rich.text import Text

from diffalign.atomic import write_bytes
from diffalign.evaluate.details import Details
from diffalign.evaluate.stats import Comparison

SCHEMA = 1
PACKAGES = ("diffalign", "torch", "diffusers", "transformers", "accelerate", "peft", "numpy")


class ComparisonRow(TypedDict):
    """One judge's verdict on one model, against the base."""

    model: str
    metric: str
    held_out: bool
    win_rate: float
    ci_low: float
    ci_high: float
    wins: int
    ties: int
    losses: int
    mean_gain: float
    mean_gain_sd: float
    win_rate_zero_margin: float
    p_value: float
    regression_rate: float


class _Always(TypedDict):
    schema: int
    base: str
    prompts: int
    seeds_per_prompt: int
    tie_margin_sd: float
    comparisons: list[ComparisonRow]
    diversity: dict[str, dict[str, float]]
    obedience: dict[str, float]
    versions: dict[str, str]


class Report(_Always, total=False):
    """The content of report.json. ``comparisons[0]`` is the primary comparison, by a judge not trained on.

    ``details`` are there where ``diffalign evaluate BASE ALIGNED ...`` wrote the report.
    """

    details: Details


class ReportError(ValueError):
    """A report that is not in the schema; the message names what is wrong."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A comparison with its names: which model, by which judge, and whether training never saw that judge."""

    model: str
    metric: str
    held_out: bool
    comparison: Comparison


def build_report(
    *,
    base: str,
    verdicts: Sequence[Verdict],
    diversity: Mapping[str, Mapping[str, float]] | None = None,
    obedience: Mapping[str, float] | None = None,
    versions: Mapping[str, str] | None = None,
) -> Report:
    """Put an evaluation into the form of report.json.

    Args:
        base: name of the base model.
        verdicts: one for each model and judge, the primary one first.
        diversity: by ``base`` and ``model`` (or a model's name), what ``diversity.diversity`` returns.
        obedience: by ``base`` and ``model`` (or a model's name), the share of pictures that obey the prompt.
        versions: by package; the installed ones by default.

    Raises:
        ReportError: no verdicts, a primary judge that was trained on, or verdicts over different pictures.
    """
    if not verdicts:
        raise ReportError("a report needs at least one comparison")
    sizes = {(v.comparison.prompts, v.comparison.seeds, v.comparison.tie_margin_sd) for v in verdicts}
    if len(sizes) > 1:
        raise ReportError(
            f"comparisons differ in (prompts, seeds, tie margin): {sorted(sizes)}; use the same for all"
        )
    prompts, seeds, margin = sizes.pop()
    report = Report(
        schema=SCHEMA,
        base=base,
        prompts=prompts,
        seeds_per_prompt=seeds,
        tie_margin_sd=margin,
        comparisons=[_row(v) for v in verdicts],
        diversity={name: dict(values) for name, values in (diversity or {}).items()},
        obedience=dict(obedience or {}),
        versions=dict(installed_versions() if versions is None else versions),
    )
    return check_report(report)


def check_report(report: object, where: str = "report") -> Report:
    """Return the report when it is in the schema.

    Raises:
        ReportError: a key is missing or unknown, another schema, or a primary judge that was trained on.
    """
    if not isinstance(report, dict):
        raise ReportError(f"{where} is a {type(report).__name__}, expected an object")
    if report.get("schema") != SCHEMA:
        raise ReportError(f"{where} has schema {report.get('schema')!r}, this diffalign reads {SCHEMA}")
    _check_keys(report, Report.__required_keys__, where, Report.__optional_keys__)
    rows = report["comparisons"]
    if not isinstance(rows, list) or not rows:
        raise ReportError(f"{where} has no comparisons")
    for i, row in enumerate(rows):
        _check_keys(row, ComparisonRow.__annotations__.keys(), f"{where} comparisons[{i}]")
    if "details" in report:
        _check_keys(report["details"], (), f"{where} details", Details.__optional_keys__)
    if not rows[0]["held_out"]:
        metric = rows[0]["metric"]
        raise ReportError(
            f"{where}: comparisons[0] is by {metric!r}, which was trained on: put a held-out judge first"
        )
    return cast(Report, report)


def write_report(path: str | Path, report: Report) -> Path:
    """Write report.json in one step: a reader sees the old file or the new one, never half of one.

    Raises:
        ReportError: the report is not in the schema, or holds a number that is not finite.
    """
    try:
        text = json.dumps(check_report(report), indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise error if isinstance(error, ReportError) else ReportError(f"report: {error}") from error
    return write_atomic(Path(path), text + "\n")


def load_report(path: str | Path) -> Report:
    """Read a report.json.

    Raises:
        FileNotFoundError: there is no such file.
        ReportError: it is not JSON or not in the schema.
    """
    path = Path(path)
    try:
        return check_report(json.loads(path.read_text(encoding="utf-8")), str(path))
    except json.JSONDecodeError as error:
        raise ReportError(f"{path} is not JSON: {error}") from error


def write_atomic(path: Path, text: str) -> Path:
    """Write a text file beside its place, then move it there; a failure leaves what was there before."""
    return write_bytes(path, text.encode("utf-8"))


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that shape a result, without importing them.

    Where diffalign runs from a git checkout, ``commit`` is its commit.
    """
    found = {"python": platform.python_version()}
    if commit := source_commit(Path(__file__).parents[2]):
        found["commit"] = commit
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def source_commit(root: Path) -> str | None:
    """Return the git commit of a checkout, with ``+`` where files differ from it; None for an installed copy.

    None also where git is missing or will not read the checkout.
    """
    if not (root / ".git").exists():
        return None
    words = ["describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    try:
        # No lock is taken: somebody may be at work in the checkout.
        git = ["git", "--no-optional-locks", "-C", str(root)]
        found = subprocess.run([*git, *words], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return found.stdout.strip() if found.returncode == 0 else None


HEADER = ("judge", "", "win rate [95 %]", "W/T/L", "gain in s.d.", "zero margin", "p", "regressed")


def show_report(report: Report, console: Console) -> None:
    """Print the comparisons as a table, then obedience and diversity."""
    sample = f"{report['prompts']} prompts x {report['seeds_per_prompt']} seeds, paired with {report['base']}"
    table = Table(
        title=Text(f"{sample}; a tie is a gain within {report['tie_margin_sd']:g} s.d."), title_justify="left"
    )
    for name in HEADER:
        table.add_column(name, justify="left" if name in ("judge", "") else "right", no_wrap=name != "judge")
    for row, cells in zip(report["comparisons"], _cells(report), strict=True):
        # Text, because a name with brackets in it would be read as markup.
        table.add_row(*map(Text, cells), style=None if row["held_out"] else "dim")
    console.print(table)
    for line in _notes(report):
        console.print(line, highlight=False, markup=False)


def markdown_table(report: Report) -> str:
    """Return the same as Markdown, for a model card."""
    rows = [HEADER, ("---",) * len(HEADER), *_cells(report)]
    table = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    margin = f"a tie is a gain within {report['tie_margin_sd']:g} s.d. of the base's seeds"
    sample = (
        f"{report['prompts']} prompts x {report['seeds_per_prompt']} seeds, each picture paired with that of "
        f"{report['base']} for the same prompt and seed; {margin}; intervals resample prompts."
    )
    return "\n".join([*table, "", sample, *(f"\n{note}" for note in _notes(report))]) + "\n"


def _cells(report: Report) -> list[tuple[str, ...]]:
    several = len({row["model"] for row in report["comparisons"]}) > 1
    return [
        (
            f"{row['model']}: {row['metric']}" if several else row["metric"],
            "held out" if row["held_out"] else "trained on",
            f"{row['win_rate']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]",
            f"{row['wins']}/{row['ties']}/{row['losses']}",
            f"{row['mean_gain_sd']:+.2f}",
            f"{row['win_rate_zero_margin']:.3f}",
            "< 0.001" if row["p_value"] < 0.001 else f"{row['p_value']:.3f}",
            f"{row['regression_rate']:.1%}",
        )
        for row in report["comparisons"]
    ]


def _notes(report: Report) -> list[str]:
    notes = []
    for name, value in report["obedience"].items():
        change = "" if name == "base" else _change(value, report["obedience"].get("base"))
        notes.append(f"obedience, {name}: {value:.1%}{change}")
    for name, values in report["diversity"].items():
        notes.append(
            f"diversity, {name}: "
            + ", ".join(f"{key.replace('_', ' ')} {v:.3f}" for key, v in values.items())
        )
    if not all(row["held_out"] for row in report["comparisons"]):
        notes.append("A judge that was trained on is no evidence of quality.")
    return notes


def _change(value: float, base: float | None) -> str:
    return "" if base is None else f" ({100 * (value - base):+.1f} points)"


def _row(verdict: Verdict) -> ComparisonRow:
    found = verdict.comparison
    return ComparisonRow(
        model=verdict.model,
        metric=verdict.metric,
        held_out=verdict.held_out,
        win_rate=found.win_rate.value,
        ci_low=found.win_rate.low,
        ci_high=found.win_rate.high,
        wins=found.win_rate.wins,
        ties=found.win_rate.ties,
        losses=found.win_rate.losses,
        mean_gain=found.mean_gain.value,
        mean_gain_sd=found.mean_gain_sd.value,
        win_rate_zero_margin=found.win_rate_zero_margin.value,
        p_value=found.p_value,
        regression_rate=found.regression_rate.value,
    )


def _check_keys(found: object, expected: Iterable[str], where: str, optional: Iterable[str] = ()) -> None:
    names = set(expected)
    if not isinstance(found, dict):
        raise ReportError(f"{where} is a {type(found).__name__}, expected an object")
    missing, unknown = sorted(names - set(found)), sorted(map(str, set(found) - names - set(optional)))
    if missing or unknown:
        raise ReportError(f"{where} is not in schema {SCHEMA}: missing {missing}, unknown {unknown}")
