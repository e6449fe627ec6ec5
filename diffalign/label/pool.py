"""Images of one or several pipelines, gathered by their prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from diffalign.data.readers import read
from diffalign.data.records import BytesImage, DataError, Record
from diffalign.data.split import normalise
from diffalign.label.options import LabelOptions


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


def of_pictures(prompts: Sequence[str], pictures: Tensor, model: str = "base") -> list[Record]:
    """One ranking of equals per prompt, of pictures in memory.

    Args:
        prompts: P prompts.
        pictures: (P, S, 3, H, W) uint8, S of each prompt.
        model: what made them.

    Raises:
        DataError: fewer than two pictures of a prompt.
    """
    count = pictures.shape[1]
    if count < 2:
        raise DataError(f"a ranking of one item: there are {count} pictures of each prompt; make two or more")
    return [
        Record(
            prompt=prompt,
            images=tuple(
                BytesImage.from_array(x.permute(1, 2, 0).numpy(), f"{model}: {prompt}") for x in row
            ),
            kind="ranking",
            values=(0.0,) * count,
            models=(model,) * count,
            source=f"prompt {prompt!r}",
        )
        for prompt, row in zip(prompts, pictures, strict=True)
    ]
