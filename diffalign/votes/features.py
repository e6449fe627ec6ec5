"""Numbers that say what a picture is like: oracle measures, image statistics, scores of results."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffalign.evaluate.results import Row
from diffalign.votes.pictures import Pictures
from diffalign.votes.rows import Shown, Vote, VoteError

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Voted:
    """A picture that was voted on."""

    row: Row
    data: bytes
    """Of the file."""

    def rgb(self) -> Floats:
        """(H, W, 3) in [0, 1]."""
        from PIL import Image

        with Image.open(io.BytesIO(self.data)) as image:
            return np.asarray(image.convert("RGB"), dtype=np.float64) / 255


STATISTICS = ("brightness", "contrast", "saturation", "high_frequency")
"""Image statistics that explain votes; the others go along with these so far that weights would be unsure."""

Measure = Callable[[Sequence[Voted]], Mapping[str, Floats]]
"""(N,) values by name, NaN where a picture has none."""


def image_features(pictures: Sequence[Voted]) -> dict[str, Floats]:
    """Brightness, contrast, saturation and high frequencies, each (N,) in [0, 1], as `evaluate` has them.

    Raises:
        VoteError: a picture of less than 4 pixels a side.
    """
    import torch

    from diffalign.evaluate.image_statistics import image_statistics

    try:
        found = [image_statistics(torch.from_numpy(p.rgb()).permute(2, 0, 1)[None]) for p in pictures]
    except ValueError as error:
        raise VoteError(f"no image statistics: {error}") from error
    return {f"image {s.replace('_', ' ')}": np.array([float(f[s]) for f in found]) for s in STATISTICS}


def oracle_measures(pictures: Sequence[Voted]) -> dict[str, Floats]:
    """What the shapes world's oracle measures, in its usual units, and whether the prompt was obeyed.

    Axes of a picture without a recognisable shape are NaN.

    Raises:
        VoteError: a prompt that is not of the shapes world, or a picture that is not 64 x 64.
    """
    import torch

    from diffalign.world.grammar import parse
    from diffalign.world.oracle import measure, obeys
    from diffalign.world.raters import AXES

    try:
        prompts = [parse(p.row.prompt) for p in pictures]
        x = torch.stack([torch.from_numpy(p.rgb()).permute(2, 0, 1).float() for p in pictures])
        found = measure(x)
    except (ValueError, RuntimeError) as error:
        raise VoteError(f"oracle measures are for pictures of the shapes world: {error}") from error
    known = found.recognised.numpy()
    columns = {name: np.where(known, axis(found).double().numpy(), np.nan) for name, axis in AXES.items()}
    columns["obedience"] = obeys(found, prompts).all.double().numpy()
    return {f"oracle {name}": column for name, column in columns.items()}


def result_scores(pictures: Sequence[Voted]) -> dict[str, Floats]:
    """Scores that the results have, by scorer; NaN where a picture lacks one."""
    names = dict.fromkeys(name for p in pictures for name in p.row.scores)
    return {f"score {n}": np.array([p.row.scores.get(n, np.nan) for p in pictures]) for n in names}


MEASURES: dict[str, Measure] = {
    "oracle": oracle_measures,
    "image": image_features,
    "scores": result_scores,
}
"""What ``votes explain --features`` names."""


def measure_sides(
    votes: Sequence[Vote], pictures: Pictures, kinds: Sequence[str]
) -> tuple[list[str], Floats, Floats]:
    """Names of F features and their (V, F) values on side a and on side b of V votes.

    Raises:
        VoteError: no such kind of feature, none found, or pictures that are missing or changed.
    """
    unknown = [k for k in kinds if k not in MEASURES]
    if unknown:
        raise VoteError(f"no features are called {unknown[0]!r}; there are {', '.join(MEASURES)}")
    found = {r.sha256 + r.prompt_id: r for r in pictures.rows}
    place: dict[str, int] = {}
    voted: list[Voted] = []
    for vote in votes:
        for side in (vote.a, vote.b):
            if _name(vote, side) not in place:
                place[_name(vote, side)] = len(voted)
                data = pictures.read(vote, side)
                voted.append(Voted(row=found[side.sha256 + vote.prompt_id], data=data))
    columns = {name: column for kind in kinds for name, column in MEASURES[kind](voted).items()}
    if not columns:
        raise VoteError("the results have no scores: choose other features, or score the pictures first")
    table = np.stack(list(columns.values()), 1)
    a, b = (np.array([place[_name(v, s)] for v, s in side]) for side in _sides(votes))
    return list(columns), table[a], table[b]


def _name(vote: Vote, side: Shown) -> str:
    return f"{side.model}\t{side.sha256}\t{vote.prompt_id}"


def _sides(votes: Sequence[Vote]) -> tuple[list[tuple[Vote, Shown]], list[tuple[Vote, Shown]]]:
    return [(v, v.a) for v in votes], [(v, v.b) for v in votes]
