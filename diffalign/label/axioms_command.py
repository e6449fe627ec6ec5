"""What ``diffalign score --axioms`` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from diffalign.config import load
from diffalign.data.readers import read
from diffalign.data.writers import write
from diffalign.evaluate.stats import Interval
from diffalign.label.axioms import AXIOMS, AxiomOptions, Case, Finding, axiom_cases, axiom_pairs, examine
from diffalign.label.judges import Judge, load_judges, own_device
from diffalign.label.paths import split_changes


def score_axioms(
    arguments: Sequence[str],
    specs: Sequence[str],
    *,
    prompt: str | None = None,
    pairs: str | None = None,
    output: Path | None = None,
    allow_hub: bool = False,
) -> list[str]:
    """What ``diffalign score --axioms`` prints: a line for each scorer, its share for each axiom.

    Args:
        arguments: one data set (of the samples too), and ``key=value`` options of AxiomOptions.
        specs: scorers, ``name=weights?option=value``.
        prompt: must be None, as data bring their own prompts.
        pairs: must be None, as axioms make pairs of their own.
        output: new folder that gets the comparisons as training pairs; None writes none.
        allow_hub: download weights that are not here, where they are published.

    Raises:
        ValueError: an option that does not go with --axioms, not exactly one data set, or wrong options.
        FileExistsError: there is something at ``output``.
    """
    if prompt is not None or pairs is not None:
        raise ValueError("--axioms takes neither --prompt nor --pairs; name a data set")
    paths, changes = split_changes([*arguments])
    if len(paths) != 1:
        raise ValueError(f"--axioms examines scorers on one data set, and {len(paths)} are named")
    if output is not None and output.exists():
        raise FileExistsError(f"{output} exists and is not overwritten: name another --output")
    options = load(AxiomOptions, {}, changes)
    cases = axiom_cases(read(paths[0], options.format), options)
    judges = load_judges(specs, own_device(), allow_hub=allow_hub)
    lines = [table(_examined(judges, cases, options))]
    if output is not None:
        made = axiom_pairs(cases, options)
        write(made, output, "folder")
        lines.append(f"{output}: {len(made)} pairs")
    return lines


def _examined(judges: Sequence[Judge], cases: Sequence[Case], options: AxiomOptions) -> list[Finding]:
    """``examine``, with a bar."""
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("cases", total=len(cases))
        return examine(judges, cases, options, progress=lambda done: bar.update(task, completed=done))


def table(findings: Sequence[Finding]) -> str:
    """Findings as lines of text: a row for each scorer, a column for each axiom."""
    rows = {f.scorer: {g.axiom: g.share for g in findings if g.scorer == f.scorer} for f in findings}
    wide = max(map(len, ("scorer", *rows)))
    head = f"{'scorer':<{wide}}  " + "  ".join(f"{axiom:<24}" for axiom in AXIOMS)
    lines = [
        f"{name:<{wide}}  " + "  ".join(f"{_percent(found[axiom]):<24}" for axiom in AXIOMS)
        for name, found in rows.items()
    ]
    cases = max((f.cases for f in findings), default=0)
    title = f"share of {cases} cases in which the original scores higher [95 %]"
    return "\n".join(line.rstrip() for line in (title, head, *lines))


def _percent(share: Interval) -> str:
    return f"{share.value:.1%} [{share.low:.1%}, {share.high:.1%}]"
