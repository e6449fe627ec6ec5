"""Somebody new from gallery votes: the vector that belongs into the store of an adapter's folder."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffalign.personalize.adapter import branch_options, encoder_options, load_encoder, read_config
from diffalign.personalize.encoders.about import Examples, pad_examples
from diffalign.personalize.encoders.table import TableOptions
from diffalign.personalize.new_user import encode
from diffalign.personalize.users import INDEX, Users
from diffalign.votes.count import counted
from diffalign.votes.pictures import Pictures
from diffalign.votes.rows import Shown, Vote, VoteError

ASPECT = "overall"


def open_users(folder: Path) -> Users:
    """People of an adapter's folder, begun where there are none yet.

    Raises:
        FileNotFoundError: the folder holds no adapter.
        ValueError: it is damaged.
    """
    if (folder / INDEX).is_file():
        return Users(folder)
    options = encoder_options(read_config(folder), folder)
    prototypes = isinstance(options, TableOptions) and options.prototypes > 0
    return Users(folder, "weights" if prototypes else "tokens")


def fitting(folder: Path, vector: Tensor) -> Tensor:
    """A person's vector that was made elsewhere, as it is.

    Raises:
        FileNotFoundError: the folder holds no adapter.
        ValueError: it is damaged, or the vector is none of its encoder.
    """
    options = encoder_options(read_config(folder), folder)
    prototypes = options.prototypes if isinstance(options, TableOptions) else 0
    wanted = (prototypes,) if prototypes else (options.tokens, options.width)
    if tuple(vector.shape) != wanted:
        raise ValueError(
            f"the vector is {tuple(vector.shape)}, and the encoder in {folder} makes {wanted}: use the "
            "encoder that belongs to this adapter"
        )
    return vector


def decided_votes(votes: Sequence[Vote], rater: str) -> list[Vote]:
    """Somebody's votes with a winner, that count, in the order of their time.

    Raises:
        VoteError: there are none; the message names the raters that there are.
    """
    found = [v for v in counted(votes).votes if v.aspect == ASPECT and v.choice in ("a", "b")]
    own = [v for v in found if v.rater == rater]
    if not own:
        raters = ", ".join(dict.fromkeys(v.rater for v in found)) or "nobody"
        raise VoteError(
            f"there are no decided votes of {rater!r}; there are some of {raters}: name one with --rater"
        )
    return own


def vector_from_votes(
    folder: Path, votes: Sequence[Vote], pictures: Pictures, *, features: str = "", reward: Path | None = None
) -> Tensor:
    """What stands for the person who cast these votes, as the store of the folder keeps it.

    An encoder of votes gives tokens at once. For a table with prototypes weights are fitted under a PAL
    reward of the same prototypes (seconds).

    Args:
        folder: of the adapter.
        votes: of one person, decided; see ``decided_votes``.
        pictures: what they are about.
        features: scorer whose towers make the features; empty takes the adapter's own.
        reward: folder of a PAL (``scorers.pal``), for a table with prototypes.

    Raises:
        ValueError: the encoder cannot learn of votes, or tower or reward are not those that it needs.
        VoteError: pictures are missing or have changed.
    """
    config = read_config(folder)
    options = encoder_options(config, folder)
    if isinstance(options, TableOptions):
        return _weights(options, votes, pictures, reward, folder)
    address = features or branch_options(config, folder).features
    if not address:
        raise ValueError(
            f"{folder} does not say whose features its encoder reads: name the scorer with --features"
        )
    return encode(load_encoder(folder), examples_of(votes, pictures, _towers(address)))[0]


def examples_of(votes: Sequence[Vote], pictures: Pictures, towers: Any) -> Examples:
    """One person's votes as features.

    Args:
        votes: with a winner each.
        pictures: what they are about.
        towers: a scorer with ``encode_images`` and ``encode_prompts``.
    """
    from scorers.learners import stack_images

    winners, losers = zip(*(_sides(vote, pictures) for vote in votes), strict=True)
    with torch.no_grad():
        prompts = towers.encode_prompts([v.prompt for v in votes]).cpu()
        won, lost = (towers.encode_images(stack_images(towers, side)).cpu() for side in (winners, losers))
    return pad_examples([list(zip(prompts, won, lost, strict=True))])


def _sides(vote: Vote, pictures: Pictures) -> tuple[Any, Any]:
    """Pictures of the winner and of the loser."""
    sides = (vote.a, vote.b) if vote.choice == "a" else (vote.b, vote.a)
    return _picture(vote, sides[0], pictures), _picture(vote, sides[1], pictures)


def _picture(vote: Vote, side: Shown, pictures: Pictures) -> Any:
    from PIL import Image

    with Image.open(io.BytesIO(pictures.read(vote, side))) as image:
        return image.convert("RGB")


def _towers(address: str) -> Any:
    import scorers

    found = scorers.load_spec(address)
    if not (hasattr(found, "encode_images") and hasattr(found, "encode_prompts")):
        raise ValueError(f"{address} gives no features: name a scorer with two towers, such as pickscore")
    return found


def _weights(
    options: TableOptions, votes: Sequence[Vote], pictures: Pictures, reward: Path | None, folder: Path
) -> Tensor:
    """(P,) row of a table's prototypes, fitted under a PAL."""
    import scorers

    if not options.prototypes or reward is None:
        how = (
            "name its PAL reward with --reward"
            if options.prototypes
            else "give the person's tokens with --vector"
        )
        raise ValueError(f"the encoder in {folder} is a table, which reads no votes: {how}")
    pal: Any = scorers.load("pal", weights=reward)
    if pal.head.options.groups != options.prototypes:
        raise ValueError(
            f"{reward} has {pal.head.options.groups} prototypes and the table in {folder} has "
            f"{options.prototypes}: name the reward that it was trained with"
        )
    winners, losers = zip(*(_sides(vote, pictures) for vote in votes), strict=True)
    prompts = [v.prompt for v in votes]
    pal.fit_user("somebody new", winners, losers, prompts, [1.0] * len(votes))
    row: Tensor = pal.head.user_learner.W[-1].detach()
    return row
