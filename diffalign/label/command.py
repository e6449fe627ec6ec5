"""What ``diffalign score`` does, with and without ``--write``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

import scorers
from diffalign.assets import asset
from diffalign.config import load
from diffalign.label.judges import load_judges
from diffalign.label.options import LabelOptions
from diffalign.label.write import write_scores


def score_pictures(
    images: Sequence[str], specs: Sequence[str], prompt: str | None, pairs: str | None, output: Path | None
) -> list[str]:
    """A line for each picture: its scores, in the order of the scorers, and its path.

    Raises:
        ValueError: no prompt, or an option that belongs to ``--write``.
        FileNotFoundError: no such picture or weights.
    """
    if pairs is not None or output is not None:
        raise ValueError("--pairs and --output write what was scored: add --write")
    if prompt is None:
        raise ValueError("say by --prompt what the pictures should show, or score a data set by --write")
    rows = []
    for spec in specs:
        name, _, weights = spec.partition("=")
        loaded = scorers.load(name, str(asset(weights)) if weights else None)
        rows.append(loaded(list(map(Path, images)), prompt).score.tolist())  # type: ignore[operator]
    table = zip(images, *rows, strict=True)
    return ["\t".join([*(f"{value:.4f}" for value in values), path]) for path, *values in table]


def write_labels(
    arguments: Sequence[str],
    specs: Sequence[str],
    prompt: str | None,
    weights: str | None,
    pairs: str | None,
    output: Path | None,
) -> list[str]:
    """Score data, store what comes of it, and say where; see ``label.write.write_scores``.

    Args:
        arguments: paths, and ``key=value`` options of LabelOptions.
        specs: scorers, ``name`` or ``name=weights``.
        prompt: must be None, as data bring their own prompts.
        weights: given for one scorer only.
        pairs: rule that makes pairs.
        output: what to write.

    Raises:
        ValueError: a prompt, no path, several scorers for one set of weights, or wrong options.
    """
    from diffalign.policy.precision import best_device  # brings diffusers

    if prompt is not None:
        raise ValueError("--prompt is for picture files; data that are written have their own prompts")
    if weights is not None and len(specs) > 1:
        raise ValueError("--weights belong to one scorer; for several write --scorer name=weights")
    changes = [a for a in arguments if "=" in a and not Path(a).exists()]
    paths = [_found(a) for a in arguments if a not in changes]
    if not paths:
        raise ValueError("name a data set, or folders of images, to score")
    options = load(LabelOptions, {}, changes)
    judges = load_judges(specs, best_device())
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("images", total=None)
        target, line = write_scores(
            paths, judges, options, rule=pairs, output=output,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    return [f"{target}: {line}"]


def _found(path: str) -> Path:
    """Path of an asset, or as it is: a glob pattern, or one whose reader says that there is nothing."""
    try:
        return asset(path)
    except FileNotFoundError:
        return Path(path)
