"""``diffalign score --write``: one pass of scorers over data or images, written as labels or pairs."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from diffalign.data.derived import Derived, write_labels
from diffalign.data.records import DataError, FileImage, Record
from diffalign.data.writers import folder_line
from diffalign.label.judges import Judge, load_judge
from diffalign.label.labels import Labels
from diffalign.label.options import LabelOptions
from diffalign.label.pool import gather
from diffalign.label.rules import rules
from diffalign.label.scoring import Progress, Scored, score_records


def write_scores(
    paths: Sequence[Path],
    judges: Sequence[Judge],
    options: LabelOptions | None = None,
    *,
    rule: str | None = None,
    output: Path | None = None,
    progress: Progress | None = None,
) -> tuple[Path, str]:
    """Score a data set, or the images of one or several pipelines, and write what comes of it.

    A data set gets a labels file beside it, to be named in ``data.labels``; folders of images become a new
    folder with metadata.jsonl, which is a data set of its own. What is there already is never overwritten.

    Args:
        paths: one data set, or folders of images.
        judges: scorers, the first of which gives SmPO\'s probability.
        options: see LabelOptions.
        rule: name of the rule that makes pairs; None labels the records as they are (phi ranks images).
        output: file or folder to write; None names it after the data.
        progress: called as images are read.

    Returns:
        What was written, and a line that says what is in it.

    Raises:
        FileExistsError: there is something at the output.
        RegistryError: no such rule.
        DataError: the data cannot be read, scored, or paired by this rule.
    """
    options = options or LabelOptions()
    if rule is not None:
        rules.get(rule)  # an unknown one fails before any image is read
    records, pooled = gather(paths, options, paired=rule is not None)
    target = output or _beside(paths, rule, pooled)
    if target.exists():
        raise FileExistsError(f"{target} exists and is not overwritten: name another --output")
    items, scored = derive(records, judges, options, rule=rule, progress=progress)
    count = _write_folder([i.record for i in items], target) if pooled else write_labels(items, target)
    return target, _summary(count, len(records), scored)


def derive(
    records: Sequence[Record],
    judges: Sequence[Judge],
    options: LabelOptions,
    *,
    rule: str | None = None,
    progress: Progress | None = None,
) -> tuple[list[Derived], Scored]:
    """What comes of records in memory: their labels, or the pairs of a rule; see ``write_scores``.

    Raises:
        DataError: the records cannot be scored, or the rule makes no pair of them.
    """
    scored = score_records(
        records,
        judges,
        Path(options.cache),
        features=rule is not None or any(r.kind == "pair" for r in records),
        feature_judge=None
        if options.features == "pixels"
        else load_judge(options.features, judges[0].device),
        batch=options.batch,
        max_bad_share=options.max_bad_share,
        progress=progress,
    )
    labels = Labels.of(scored, [j.name for j in judges], options)
    items = labels.records() if rule is None else labels.pairs(rules.get(rule))
    if not items:
        raise DataError(f"rule {rule} makes no pair of {len(records)} groups; ask for less, or add images")
    return items, scored


def _beside(paths: Sequence[Path], rule: str | None, pooled: bool) -> Path:
    if pooled:
        return paths[0].resolve().parent / f"{paths[0].resolve().name}-{rule or 'ranked'}"
    if not paths[0].exists():
        raise DataError(f"{paths[0]} is a pattern of several files: name where to write by --output")
    return paths[0].resolve().with_name(f"{paths[0].resolve().name}.{rule or 'labels'}.jsonl")


def _write_folder(records: Sequence[Record], folder: Path) -> int:
    """metadata.jsonl in a new folder; the images stay where they are."""
    lines = []
    for record in records:
        files = [image.path for image in record.images if isinstance(image, FileImage)]
        if len(files) < len(record.images):
            raise DataError(f"{record.source}: images in shards or tables cannot be pointed at; unpack them")
        lines.append(json.dumps(folder_line(record, [os.path.relpath(f, folder) for f in files])) + "\n")
    folder.mkdir(parents=True)
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    return len(lines)


def _summary(count: int, groups: int, scored: Scored) -> str:
    bad = f"; {len(scored.bad)} images unreadable" if scored.bad else ""
    return f"{count} records of {groups}; {scored.made} scores made, {scored.found} kept from before{bad}"
