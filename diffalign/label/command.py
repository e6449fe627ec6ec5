"""What ``diffalign score`` does, with and without ``--write``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

import scorers
from diffalign.assets import asset
from diffalign.config import load
from diffalign.label.judges import load_judges
from diffalign.label.options import LabelOptions
from diffalign.label.write import write_scores


def score_pictures(images: Sequence[str], specs: Sequence[str], prompt: str | None) -> list[str]:
    """A line for each picture: its scores (or why there is none), in the order of the scorers, and its path.

    Raises:
        ValueError: no prompt where a scorer needs one, or a scorer of pairs.
        FileNotFoundError: no such picture or weights.
    """
    columns = [_column(spec, images, prompt) for spec in specs]
    return ["\t".join([*cells, path]) for path, *cells in zip(images, *columns, strict=True)]


def refuse_ignored(
    modes: Mapping[str, bool],
    *,
    scorers: int,
    weights: str | None,
    pairs: str | None,
    output: Path | None,
    processes: int,
) -> None:
    """Refuse options of ``diffalign score`` that would silently do nothing.

    Args:
        modes: whether ``--axioms``, ``--write`` and ``--compare`` are given, by name.
        scorers: how many.
        weights: of ``--weights``.
        pairs: rule of ``--pairs``.
        output: of ``--output``.
        processes: of ``--processes``.

    Raises:
        ValueError: two modes at once, an option of another mode, or one set of weights for several scorers.
    """
    asked = [name for name, given in modes.items() if given]
    if len(asked) > 1:
        raise ValueError(f"{' and '.join(asked)} are different commands; give one of them")
    if pairs is not None and asked in ([], ["--compare"]):
        raise ValueError("--pairs writes what was scored: add --write")
    if output is not None and asked == ["--compare"]:
        raise ValueError("--compare prints its verdict and writes nothing: leave --output out")
    if processes > 1 and (asked or output is None):
        raise ValueError("--processes share the scoring into a file: give --output, and none of the modes")
    if scorers > 1 and weights is not None:
        raise ValueError("--weights belong to one scorer; for several write --scorer name=weights")


def _column(spec: str, images: Sequence[str], prompt: str | None) -> list[str]:
    """What one scorer says of each picture: its score, or why there is none."""
    name, _, weights = spec.partition("=")
    loaded = scorers.load(name, str(asset(weights)) if weights else None)
    if loaded.kind == "pairwise":
        raise ValueError(f"scorer {name} compares two pictures and has no score of one; see its compare")
    if prompt is None and "prompt" in loaded.needs:
        raise ValueError("say by --prompt what the pictures should show, or score a data set by --write")
    found = loaded(list(map(Path, images)), prompt)  # type: ignore[operator]
    status = found.status or ("ok",) * len(images)
    scores = found.score.tolist()
    return [f"{value:.4f}" if word == "ok" else word for value, word in zip(scores, status, strict=True)]


def write_labels(
    arguments: Sequence[str],
    specs: Sequence[str],
    prompt: str | None,
    pairs: str | None,
    output: Path | None,
) -> list[str]:
    """Score data, store what comes of it, and say where; see ``label.write.write_scores``.

    Args:
        arguments: paths, and ``key=value`` options of LabelOptions.
        specs: scorers, ``name`` or ``name=weights``.
        prompt: must be None, as data bring their own prompts.
        pairs: rule that makes pairs.
        output: what to write.

    Raises:
        ValueError: a prompt, no path, or wrong options.
    """
    from diffalign.policy.precision import best_device  # brings diffusers

    if prompt is not None:
        raise ValueError("--prompt is for picture files; data that are written have their own prompts")
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
