"""The pairs of a round: two pictures of each prompt by the model as it is, written as results to vote on."""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffalign.evaluate.generate import Sampling, generate
from diffalign.evaluate.judge import load_judges
from diffalign.evaluate.report import write_atomic
from diffalign.evaluate.results import Row, prompt_id, write_rows
from diffalign.loop.options import LoopError, LoopOptions, RoundFolder
from diffalign.loop.settled import settled_votes
from diffalign.policy import Policy
from diffalign.votes.choose import IMPLICIT, Candidate, Choice, candidates, chooser, pool_of
from diffalign.votes.pictures import gallery_hash
from diffalign.votes.rows import to_lines

FIRST_SEED = 1000
"""Pictures of rounds have seeds from here on, and evaluations from 0: they never meet."""
Say = Callable[[str], None]


def training_prompts(options: LoopOptions) -> list[str]:
    """Prompts to vote on, never those of the evaluation.

    Raises:
        PromptFileError: the file of prompts cannot be read.
    """
    if options.prompts:
        from diffalign.evaluate.prompts import read_prompts

        return [p.prompt for p in read_prompts(options.prompts)]
    from diffalign.world.votes import world_prompts

    return [str(p) for p in world_prompts(options.taste, 1000, "train", options.seed)]


def round_prompts(options: LoopOptions, number: int) -> list[str]:
    """Prompts of round ``number`` (from 1): the next ones; after the last comes the first again.

    Raises:
        LoopError: there are fewer than a round takes.
    """
    every = training_prompts(options)
    if len(every) < options.pool:
        raise LoopError(
            f"there are {len(every)} training prompts, and a round takes {options.pool}: lower --votes or "
            "--candidates, or give more --prompts"
        )
    start = (number - 1) * options.pool
    return [every[(start + i) % len(every)] for i in range(options.pool)]


def draw_round(
    policy: Policy, options: LoopOptions, number: int, folder: RoundFolder, sampling: Sampling,
    implicit: Path | None, say: Say,
) -> None:  # fmt: skip
    """Draw the pairs of a round, choose which are voted on, and write these as results.

    Args:
        policy: the model as it is.
        options: of the loop.
        number: of the round, from 1.
        folder: of the round.
        sampling: how pictures are made.
        implicit: run of the round before, whose implicit reward tells margins; None in the first.
        say: shows a line.
    """
    prompts = round_prompts(options, number)
    seeds = [FIRST_SEED + 2 * number, FIRST_SEED + 2 * number + 1]
    pictures = generate(policy, prompts, seeds, sampling)  # (P, 2, 3, H, W)
    scores = _scores(options, prompts, pictures, implicit)
    drawn = _drawn(prompts, pictures, f"round-{number}", scores)
    pairs = candidates([row for row, _ in drawn])
    choice = _choose(pairs, options, number, implicit, say)
    asked, settled = [pairs[i] for i in choice.people.tolist()], [pairs[i] for i in choice.scorer]
    say(f"round {number}     {len(pairs)} pairs drawn: {len(asked)} to vote on, {len(settled)} by scorers")
    data = {row.sha256: content for row, content in drawn}
    if settled:
        rows = _write(folder.settled, settled, data)
        votes = settled_votes(settled, list(choice.scorer.values()), gallery_hash(rows))
        write_atomic(folder.settled / "votes.jsonl", to_lines(votes))
    _write(folder.results, asked, data)


def read_pictures(rows: Sequence[Row], folder: Path) -> dict[str, Tensor]:
    """(3, H, W) uint8 pictures of results, by sha256."""
    found = {}
    for row in rows:
        with Image.open(folder / row.path) as image:
            array = np.array(image.convert("RGB"))
        found[row.sha256] = torch.from_numpy(array).permute(2, 0, 1)
    return found


def _choose(
    pairs: Sequence[Candidate], options: LoopOptions, number: int, implicit: Path | None, say: Say
) -> Choice:
    way = options.choose
    if way == "margin" and implicit is None:
        say(f"round {number}     no aligned model is there whose margins could tell: any pairs are taken")
        way = "random"
    rng = np.random.default_rng([options.seed, number, 14])
    return chooser(way).choose(pool_of(pairs), options.votes, rng)


def _scores(
    options: LoopOptions, prompts: Sequence[str], pictures: Tensor, implicit: Path | None
) -> dict[str, np.ndarray]:
    """(P, 2) scores by scorer, where pairs are chosen by them."""
    specs = list(options.scorers)
    if options.choose == "margin" and implicit is not None:
        specs.append(f"{IMPLICIT}={implicit}")
    return {j.name: j.score(pictures, prompts) for j in (load_judges(specs, []) if specs else [])}


def _drawn(
    prompts: Sequence[str], pictures: Tensor, name: str, scores: dict[str, np.ndarray]
) -> list[tuple[Row, bytes]]:
    """Row and PNG of each of (P, 2, 3, H, W) uint8 pictures."""
    height, width = pictures.shape[-2:]
    found = []
    for (p, prompt), (side, letter) in itertools.product(enumerate(prompts), enumerate("xy")):
        model, data = f"{name}-{letter}", _png(pictures[p, side])
        row = Row(
            prompt_id=prompt_id(prompt), prompt=prompt, seed=0, model=model,
            path=f"{model}/{prompt_id(prompt)}/0.png", width=width, height=height,
            sha256=hashlib.sha256(data).hexdigest(), scores={s: float(v[p, side]) for s, v in scores.items()},
        )  # fmt: skip
        found.append((row, data))
    return found


def _write(folder: Path, pairs: Sequence[Candidate], data: dict[str, bytes]) -> list[Row]:
    """Write the pictures of pairs and then, when all are there, their rows."""
    rows = [row for pair in pairs for row in (pair.a, pair.b)]
    for row in rows:
        (folder / row.path).parent.mkdir(parents=True, exist_ok=True)
        (folder / row.path).write_bytes(data[row.sha256])
    write_rows(folder, rows)
    return rows


def _png(picture: Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return buffer.getvalue()
