"""Written profiles and their states: what to ask a vision-language model, and the file that keeps its answer.

The model itself runs elsewhere. As in PPD (arXiv:2501.06655) it sees a few pairs of a person with what was
preferred, describes the person's taste, and leaves the hidden states of its last token, one for each layer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffalign.personalize.encoders.about import Profile
from diffalign.personalize.files import STATES, read_tensors, write_tensors

FORMAT, SOURCE = "1", "model"
BEFORE = "One person compared pairs of pictures. Both pictures of a pair were made for the same caption."
AFTER = """For each pair describe both pictures, then say in what they differ: style, colours, composition,
detail, quality.
Then write a profile of the person: what kind of pictures do they prefer, whatever the caption? Say only what
the pairs show."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A pair that a model is shown, as the caption that both pictures share; the pictures go in order."""

    caption: str
    preferred_first: bool
    """Whether the first of the two pictures is the one that the person preferred."""


def profile_prompt(pairs: Sequence[Shown]) -> str:
    """Text beside the pictures (first and second of each pair, in order) that asks for a profile.

    Raises:
        ValueError: no pairs.
    """
    if not pairs:
        raise ValueError("a profile needs at least one pair (4 are usual)")
    shown = [_line(i, pair) for i, pair in enumerate(pairs, 1)]
    return "\n".join([BEFORE, *shown, AFTER])


def _line(number: int, pair: Shown) -> str:
    second = 2 * number
    caption = json.dumps(pair.caption, ensure_ascii=False)
    best = second - 1 if pair.preferred_first else second
    return (
        f"Pair {number}, made for the caption {caption}: pictures {second - 1} and {second}. "
        f"The person preferred picture {best}."
    )


def write_profiles(path: Path, states: Mapping[str, Tensor], model: str) -> Path:
    """Keep the states (T, F) of people in half precision, with the name of the model.

    For training they stand under the raters' names as the data have them; beside a store of people, under its
    hashed ids. ``Users.delete`` takes people out of such a file by either.

    Raises:
        ValueError: nobody, or states of several widths or that are not finite.
        FileExistsError: the file is there.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists: choose another name")
    widths = {tuple(s.shape[1:]) for s in states.values()}
    if len(widths) != 1 or any(s.ndim != 2 or not len(s) for s in states.values()):
        raise ValueError(
            f"states are of widths {sorted(widths)}; each must be (states, features), all of one width"
        )
    wrong = [one for one, s in states.items() if not bool(s.half().isfinite().all())]
    if wrong:
        raise ValueError(f"states of {wrong[0]} are not finite in half precision: make them again")
    tensors = {f"{one}{STATES}": s.half() for one, s in states.items()}
    return write_tensors(path, tensors, {SOURCE: model, "profiles": FORMAT})


def read_profiles(path: Path, people: Sequence[str], *, model: str | None = None) -> Profile:
    """Profiles of B people by names or ids; somebody who is not in the file has an empty one.

    Args:
        path: what ``write_profiles`` wrote.
        people: as the file has them, in the wanted order.
        model: whose states are expected; None takes those of any.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no profiles, or those of another model.
    """
    tensors, about = read_tensors(path)
    found = {name.removesuffix(STATES): value for name, value in tensors.items()}
    if about.get("profiles") != FORMAT or not found:
        raise ValueError(f"{path} holds no profiles in format {FORMAT}: write them with write_profiles")
    if model is not None and about.get(SOURCE) != model:
        raise ValueError(f"{path} holds states of {about.get(SOURCE)!r}, not of {model!r}: make them anew")
    longest = max((len(found[p]) for p in people if p in found), default=1)
    width = next(iter(found.values())).shape[1]
    states = torch.zeros(len(people), longest, width)
    mask = torch.zeros(len(people), longest, dtype=torch.bool)
    for b, one in enumerate(people):
        if one in found:
            states[b, : len(found[one])], mask[b, : len(found[one])] = found[one].float(), True
    return Profile(states=states, mask=mask)
