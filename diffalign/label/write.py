"""``diffalign score --write``: one pass of scorers over data or images, written as labels or pairs."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from diffalign.data.derived import write_labels
from diffalign.data.readers import read
from diffalign.data.records import DataError, FileImage, Record
from diffalign.data.split import normalise
from diffalign.data.writers import folder_line
from diffalign.label.judges import Judge, load_judge
from diffalign.label.labels import Labels
from diffalign.label.options import LabelOptions
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
    make = rules.get(rule) if rule is not None else None  # an unknown rule fails before any image is read
    records, pooled = gather(paths, options, paired=rule is not None)
    target = output or _beside(paths, rule, pooled)
    if target.exists():
        raise FileExistsError(f"{target} exists and is not overwritten: name another --output")
    scored = _score(records, judges, options, needs_features=rule is not None, progress=progress)
    labels = Labels.of(scored, [j.name for j in judges], options)
    items = labels.pairs(make) if make is not None else labels.records()
    if not items:
        raise DataError(f"rule {rule} makes no pair of {len(records)} groups; ask for less, or add images")
    count = _write_folder([i.record for i in items], target) if pooled else write_labels(items, target)
    return target, _summary(count, len(records), scored)


def gather(paths: Sequence[Path], options: LabelOptions, *, paired: bool) -> tuple[list[Record], bool]:
    """Records to score, and whether they are images gathered by prompt rather than a data set as it is.

    Images nobody judged are gathered, and so are likes where pairs are to be made of them.

    Raises:
        DataError: several paths of judged data, or a prompt with one image.
    """
    parts = [read(path, options.format, max_pairs=options.max_pairs) for path in paths]
    records = [record for part in parts for record in part]
    unjudged = all(r.kind == "labels" and r.undecided for r in records)
    if not unjudged and len(paths) > 1:
        raise DataError(f"{paths[0]} and the others hold judgements; several paths must be folders of images")
    if unjudged or (paired and all(r.kind == "labels" for r in records)):
        return gathered(records), True
    return records, False


def gathered(records: Sequence[Record]) -> list[Record]:
    """One ranking of equals per prompt, of all its images.

    Raises:
        DataError: a prompt with one image.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(normalise(record.prompt), []).append(record)
    single = [g[0].prompt for g in groups.values() if sum(len(r.images) for r in g) == 1]
    if single:
        raise DataError(
            f"a ranking of one item: {len(single)} of {len(groups)} prompts have one image only (for example "
            f"{single[0]!r}); make two of each prompt, or name another folder that has them"
        )
    return [_merged(group) for group in groups.values()]


def _merged(group: Sequence[Record]) -> Record:
    images = tuple(image for r in group for image in r.images)
    models = tuple(model for r in group for model in r.models)
    return Record(
        prompt=group[0].prompt,
        images=images,
        kind="ranking",
        values=(0.0,) * len(images),
        models=models if len(models) == len(images) else (),
        source=f"prompt {group[0].prompt!r}",
    )


def _beside(paths: Sequence[Path], rule: str | None, pooled: bool) -> Path:
    if pooled:
        return paths[0].resolve().parent / f"{paths[0].resolve().name}-{rule or 'ranked'}"
    if not paths[0].exists():
        raise DataError(f"{paths[0]} is a pattern of several files: name where to write by --output")
    return paths[0].resolve().with_name(f"{paths[0].resolve().name}.{rule or 'labels'}.jsonl")


def _score(
    records: Sequence[Record],
    judges: Sequence[Judge],
    options: LabelOptions,
    *,
    needs_features: bool,
    progress: Progress | None,
) -> Scored:
    encoder = None if options.features == "pixels" else load_judge(options.features, judges[0].device)
    return score_records(
        records,
        judges,
        Path(options.cache),
        features=needs_features or any(r.kind == "pair" for r in records),
        feature_judge=encoder,
        batch=options.batch,
        max_bad_share=options.max_bad_share,
        progress=progress,
    )


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
