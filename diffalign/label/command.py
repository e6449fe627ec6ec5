"""What ``diffalign score`` does to pictures alone, and with ``--write``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from diffalign.config import load
from diffalign.label.judges import Judge, load_judges, own_device
from diffalign.label.options import LabelOptions
from diffalign.label.paths import split_changes
from diffalign.label.write import write_scores
from scorers.each import read_each, score_each


def score_pictures(
    images: Sequence[str],
    specs: Sequence[str],
    prompt: str | None,
    *,
    batch: int = 32,
    allow_hub: bool = False,
) -> list[str]:
    """A line for each picture: its scores (or why there is none), in the order of the scorers, and its path.

    Args:
        images: picture files.
        specs: scorers, ``name=weights?option=value`` or the address of a reward server.
        prompt: what the pictures should show; None where no scorer needs it.
        batch: pictures that go through a scorer at once.
        allow_hub: download weights that are not here, where they are published.

    Raises:
        ValueError: no prompt where a scorer needs one.
        DataError: a scorer of pairs, or of latents.
        FileNotFoundError: no such picture or weights.
    """
    judges = load_judges(specs, own_device(), allow_hub=allow_hub)
    if prompt is None and any("prompt" in judge.scorer.needs for judge in judges):
        raise ValueError("say by --prompt what the pictures should show, or score a data set by --write")
    for path in images:
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no picture {path}; folders are scored with --output")
    columns = [_column(judge, images, prompt, batch) for judge in judges]
    return ["\t".join([*cells, path]) for path, *cells in zip(images, *columns, strict=True)]


def _column(judge: Judge, images: Sequence[str], prompt: str | None, batch: int) -> list[str]:
    """What one scorer says of each picture: its score, or why there is none."""
    cells: list[str] = []
    for start in range(0, len(images), batch):
        pictures = read_each([Path(path) for path in images[start : start + batch]])
        found = score_each(judge.scorer, pictures, [prompt or ""] * len(pictures), chunk=batch)
        cells += [o.status if o.score is None else f"{o.score:.4f}" for o in found]
    return cells


def write_labels(
    arguments: Sequence[str],
    specs: Sequence[str],
    prompt: str | None,
    pairs: str | None,
    output: Path | None,
    *,
    allow_hub: bool = False,
) -> list[str]:
    """Score data, store what comes of it, and say where; see ``label.write.write_scores``.

    Args:
        arguments: paths, and ``key=value`` options of LabelOptions.
        specs: scorers, ``name=weights?option=value``.
        prompt: must be None, as data bring their own prompts.
        pairs: rule that makes pairs.
        output: what to write.
        allow_hub: download weights that are not here, where they are published.

    Raises:
        ValueError: a prompt, no path, or wrong options.
    """
    if prompt is not None:
        raise ValueError("--prompt is for picture files; data that are written have their own prompts")
    paths, changes = split_changes([*arguments])
    if not paths:
        raise ValueError("name a data set, or folders of images, to score")
    options = load(LabelOptions, {}, changes)
    judges = load_judges(specs, own_device(), allow_hub=allow_hub)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("images", total=None)
        target, line = write_scores(
            paths, judges, options, rule=pairs, output=output,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    return [f"{target}: {line}"]
