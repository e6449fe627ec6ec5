"""Seeds that fail, and seeds that fail or excel whatever the prompt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffalign.evaluate.details import Reliability, Seeds, as_range
from diffalign.evaluate.report import ReportError, load_report
from diffalign.evaluate.stats import ALPHA, Floats, bootstrap, holm, sign_flip_p, widened
from diffalign.evaluate.table import Table

FAIL_SD = 2.0
"""A picture fails by a scorer with many values so many s.d. below the mean of the base's on its prompt."""
Bools = NDArray[np.bool_]


def is_binary(scores: Floats) -> bool:
    """Whether a scorer only says right (1) or wrong (0)."""
    return bool(np.isin(scores, (0.0, 1.0)).all())


def failures(scores: Floats, unit: float) -> Bools:
    """Of (M, P, S) scores, the base's first: which pictures fail."""
    if is_binary(scores):
        return scores < 0.5
    found: Bools = scores < scores[:1].mean(2, keepdims=True) - FAIL_SD * unit
    return found


def reliability(failed: Bools) -> Reliability:
    """Summarise (P, S) failures."""
    share = failed.mean(1)  # (P,)
    return Reliability(
        fail=as_range(widened(bootstrap(share[:, None].astype(float))[0], len(share))),
        every_seed=float((share == 1).mean()),
        some_seeds=float(((share > 0) & (share < 1)).mean()),
    )


def standing_out(scores: Floats) -> tuple[list[int], list[int]]:
    """Seeds of (P, S) scores that fail, and that excel, across prompts: worst and best first.

    A seed's score is counted from the mean of its prompt; its mean over prompts is tested by sign flips, and
    the p-values of all seeds are adjusted by Holm.
    """
    centred = scores - scores.mean(1, keepdims=True)
    if np.ptp(centred) == 0:
        return [], []
    p = np.array(holm([sign_flip_p(column) for column in centred.T]))
    means = centred.mean(0)
    order = np.argsort(means, kind="stable")
    found = [int(s) for s in order if p[s] < ALPHA]
    return [s for s in found if means[s] < 0], [s for s in found if means[s] > 0][::-1]


def seeds_of(table: Table, primary: str, units: dict[str, float], noise: str) -> Seeds:
    """Reliability by the first scorer that says right or wrong (obedience counts as one), else the primary.

    Seeds are compared across prompts only where they share their noise; all models count there.
    """
    binary = {name: s for name, s in table.scores.items() if is_binary(s)}
    if table.obedience is not None and "shapes-obedience" not in table.scores:
        binary.setdefault("obedience", table.obedience)
    name = next(iter(binary), primary)
    failed = failures(binary.get(name, table.scores[primary]), units.get(name, 1.0))
    # In units of its own s.d., so that no model outweighs another.
    pooled = np.mean([s / (s.std() or 1.0) for s in table.scores[primary]], axis=0)
    fail, excel = standing_out(pooled) if noise == "shared" else ([], [])
    return Seeds(
        metric=name,
        noise=noise,
        models={model: reliability(failed[i]) for i, model in enumerate(table.models)},
        fail=fail,
        excel=excel,
    )


def excelling(report: Path) -> list[int]:
    """Seeds that excel across prompts in a report.json, the best first.

    Raises:
        ReportError: there are none, or seeds were not compared.
    """
    seeds = load_report(report).get("details", {}).get("seeds")
    if seeds is None or seeds["noise"] != "shared":
        raise ReportError(
            f"{report} compares no seeds across prompts: evaluate with --noise shared and more --seeds"
        )
    if not seeds["excel"]:
        raise ReportError(f"no seed excels across prompts in {report}: leave out --seeds-from")
    return seeds["excel"]
