"""``diffalign score --compare a b``: how often the pictures of one folder beat those of another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffalign.data.records import DataError
from diffalign.evaluate.stats import Comparison, base_sd, compare
from diffalign.label.judges import Judge
from diffalign.label.many import Progress, scored_rows
from diffalign.label.pictures import Picture, pictures


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What one scorer says."""

    scorer: str
    comparison: Comparison
    margin_known: bool
    """Whether the seeds gave a tie margin; with one picture per prompt only equal scores are ties."""

    def line(self, base: Path, model: Path) -> str:
        """One line for people."""
        c, rate = self.comparison, self.comparison.win_rate
        text = (
            f"{self.scorer}: {model} beats {base} in {rate.value:.1%} [{rate.low:.1%}, {rate.high:.1%}] of "
            f"{c.prompts * c.seeds} pairs over {c.prompts} prompts (W {rate.wins} T {rate.ties} L "
            f"{rate.losses}), "
        )
        if not self.margin_known:
            gain = c.mean_gain
            return f"{text}mean gain {gain.value:.4g} [{gain.low:.4g}, {gain.high:.4g}], p = {c.p_value:.2g}"
        gain, zero = c.mean_gain_sd, c.win_rate_zero_margin
        return (
            f"{text}without tie margin {zero.value:.1%}, mean gain {gain.value:.2f} "
            f"[{gain.low:.2f}, {gain.high:.2f}] s.d., p = {c.p_value:.2g}"
        )


def compare_folders(
    base: Path,
    model: Path,
    judges: Sequence[Judge],
    prompt: str | None = None,
    *,
    batch: int = 32,
    workers: int = 4,
    progress: Progress | None = None,
) -> list[Verdict]:
    """Win rate, with interval, of ``model`` over ``base``: pictures with the same file name are paired.

    Intervals resample prompts, as the pictures of one prompt are alike. A gain within 0.25 s.d. of the base's
    own spread within a prompt is a tie; with one picture per prompt only equal scores are.

    Args:
        base: folder of pictures with prompts, see ``label.pictures``.
        model: folder with the same file names.
        judges: scorers.
        prompt: of all pictures, where none stands beside them; then every picture counts as a prompt.
        batch: pictures that go through a scorer at once.
        workers: threads that read ahead.
        progress: called with (pictures scored, all).

    Raises:
        DataError: the folders do not hold the same names and prompts, prompts have different numbers of
            pictures, or a picture cannot be scored.
    """
    pairs = _paired(base, model, prompt)
    flat = [picture for pair in pairs for picture in pair]
    groups = _groups([a.prompt for a, _ in pairs], alone=prompt is not None)
    scores: dict[str, list[float]] = {j.name: [] for j in judges}
    for count, rows in scored_rows(flat, judges, batch, workers):
        for row in rows:
            for judge in judges:
                scores[judge.name].append(_score(judge, row))
        if progress is not None:
            progress(count, len(flat))
    return [_verdict(judge.name, np.array(scores[judge.name]), groups) for judge in judges]


def _verdict(name: str, scores: np.ndarray, groups: np.ndarray) -> Verdict:
    """``scores`` (2N,) base and model by turns; ``groups`` (P, S) positions of pairs."""
    base, model = scores[0::2][groups], scores[1::2][groups]  # (P, S)
    known = groups.shape[1] > 1
    found = compare(base, model, sd=base_sd(base) if known else 1.0, tie_margin_sd=0.25 if known else 0.0)
    return Verdict(scorer=name, comparison=found, margin_known=known)


def _score(judge: Judge, row: dict[str, object]) -> float:
    value = row[judge.name]
    if not isinstance(value, float):
        raise DataError(
            f"{row['key']}: {judge.name} gave no score ({row[f'{judge.name}.status']}); all are needed"
        )
    return value if judge.scorer.higher_better else -value


def _paired(base: Path, model: Path, prompt: str | None) -> list[tuple[Picture, Picture]]:
    sides = [{_name(p, folder): p for p in pictures([folder], prompt)} for folder in (base, model)]
    lonely = sorted(set(sides[0]) ^ set(sides[1]))
    if lonely:
        raise DataError(
            f"{len(lonely)} pictures have no partner of the same name in the other folder, for example "
            f"{lonely[0]}; {base} and {model} must hold the same names"
        )
    pairs = [(a, sides[1][name]) for name, a in sides[0].items()]
    for a, b in pairs:
        if a.prompt != b.prompt:
            raise DataError(f"{a.key} and {b.key} have different prompts: {a.prompt!r} and {b.prompt!r}")
    return pairs


def _name(picture: Picture, folder: Path) -> str:
    """File name within the folder, or place within table or shard."""
    return picture.key.removeprefix(str(folder)).lstrip("/\\")


def _groups(prompts: Sequence[str | None], *, alone: bool) -> np.ndarray:
    """(P, S) positions of the pairs of each prompt."""
    rows: dict[object, list[int]] = {}
    for i, prompt in enumerate(prompts):
        rows.setdefault(i if alone or prompt is None else prompt, []).append(i)
    counts = {len(row) for row in rows.values()}
    if len(counts) > 1:
        raise DataError(
            f"prompts have {min(counts)} to {max(counts)} pictures each; make as many of every prompt"
        )
    return np.array(list(rows.values()))
