"""How well an aligned model's implicit reward foretells held-out votes, beside explicit scorers.

In distribution are pictures like those that it learnt from: of its own base, for held-out prompts. Out of
distribution are pictures of another pipeline, and pictures that the world's renderer draws, for the same
prompts. Votes are those of the simulated person whose taste the run was aligned to; nobody can foretell them
better than that person's noise-free utility, whose accuracy is the ceiling.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffalign.evaluate.generate import Sampling, generate
from diffalign.label.axioms import share_by_prompt
from diffalign.label.judges import Judge, load_judges
from diffalign.policy import Policy, load_policy
from diffalign.world.grammar import Prompt
from diffalign.world.obedience import SAMPLING
from diffalign.world.raters import Rater, named_rater
from diffalign.world.shapes import draw
from diffalign.world.votes import world_prompts

CEILING = "ceiling"
"""Name of the noise-free utility among the scorers."""


@dataclass(frozen=True, kw_only=True)
class Contest:
    """Pairs of pictures of one origin, with votes."""

    name: str
    prompts: tuple[str, ...]
    pictures: Tensor
    """(P, 2, 3, 64, 64) uint8."""
    votes: Tensor
    """(P,) 1 for the first picture, 0 for the second, 0.5 for a tie."""
    utility: Tensor
    """(P, 2) noise-free utility."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """Accuracy of one scorer on one contest: share of the votes that are no ties, with its interval."""

    contest: str
    scorer: str
    accuracy: float
    low: float
    high: float
    votes: int


@dataclass(frozen=True, kw_only=True)
class ContestOptions:
    """How contests are made."""

    taste: str
    """Whose votes: a key of TASTES, that of the run."""
    pairs: int = 200
    """Pairs of each contest, one for each prompt."""
    seed: int = 0
    other: str | None = None
    """Pipeline of the second contest; None takes the one of samples/shapes that the run is not of."""


def examine_run(
    run: Path, specs: Sequence[str], pairs: int, progress: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Accuracy of a run's implicit reward and of explicit scorers (``name`` or ``name=weights``).

    Returns:
        Content of the json file: what was measured, and ``results``, a row for each scorer and contest.

    Raises:
        ValueError: the run was not aligned to a taste of the shapes world.
        FileNotFoundError: no finished run there.
    """
    from diffalign.label.implicit import ImplicitScorer
    from diffalign.policy.precision import best_device
    from diffalign.train.again import open_run

    config, policy = open_run(run)
    if config.data.world is None:
        raise ValueError(f"{run} was not aligned to a taste of the shapes world, so nobody can vote")
    policy.to(best_device())
    implicit = ImplicitScorer.of(config, policy)
    judges = [Judge(name="implicit", scorer=implicit, id=str(run), device=policy.device)]
    judges += load_judges(specs, policy.device) if specs else []
    options = ContestOptions(taste=config.data.world.taste, pairs=pairs)
    progress("making pictures")
    results = accuracies(contests(policy, options), judges, progress)
    about = {"run": run.name, "taste": options.taste, "pairs": pairs, "draws": implicit.draws}
    return {"schema": 1, **about, "results": [asdict(r) for r in results]}


def contests(policy: Policy, options: ContestOptions) -> list[Contest]:
    """In distribution: the base's pictures; out of it: another pipeline's, and the renderer's.

    Args:
        policy: the aligned model, with its base.
        options: see ContestOptions.

    Raises:
        ValueError: no such taste.
        FileNotFoundError: the other pipeline is not there.
    """
    rater, own_kind = named_rater(options.taste), _kind(policy)
    name = options.other or f"samples/shapes/{'dit' if own_kind == 'unet' else 'unet'}"
    stranger = load_policy(name).to(policy.device)
    prompts = world_prompts(options.taste, options.pairs, "heldout", options.seed)
    rng = np.random.default_rng([options.seed, 8])
    seeds, texts = range(5000, 5002), [str(p) for p in prompts]  # never those of training or evaluation
    with policy.base():
        own = generate(policy, texts, seeds, _sampling(own_kind))
    other = generate(stranger, texts, seeds, _sampling(_kind(stranger)))
    drawn = torch.stack([draw(prompts, rng) for _ in range(2)], 1)
    made = {
        "in: the base's pictures": own,
        f"out: pictures of {Path(name).name}": other,
        "out: the renderer's pictures": (drawn * 255).round().byte(),
    }
    return [contest(title, prompts, pictures, rater, rng) for title, pictures in made.items()]


def _kind(policy: Policy) -> str:
    return "unet" if policy.family.component == "unet" else "dit"


def _sampling(kind: str) -> Sampling:
    """Steps and guidance at which the world's pipelines are examined."""
    steps, guidance = SAMPLING[kind]
    return Sampling(steps=steps, guidance=guidance)


def contest(
    name: str, prompts: Sequence[Prompt], pictures: Tensor, rater: Rater, rng: np.random.Generator
) -> Contest:
    """Let a simulated person vote on (P, 2, 3, 64, 64) uint8 pictures of P prompts."""
    utility = torch.stack([rater.score(pictures[:, k].float() / 255, prompts) for k in range(2)], 1)
    votes = rater.vote(utility[:, 0], utility[:, 1], rng)
    return Contest(
        name=name, prompts=tuple(map(str, prompts)), pictures=pictures, votes=torch.from_numpy(votes),
        utility=utility,
    )  # fmt: skip


def accuracies(
    found: Sequence[Contest], judges: Sequence[Judge], progress: Callable[[str], None] = lambda text: None
) -> list[Result]:
    """Accuracy of every scorer, and of the ceiling, on every contest; ``progress`` hears what comes next.

    Raises:
        ValueError: a contest in which every vote is a tie.
    """
    results = []
    for game in found:
        gaps = {CEILING: game.utility[:, 0] - game.utility[:, 1]}
        for judge in judges:
            progress(f"{game.name}: {judge.name}")
            first, second = (_scores(judge, game, k) for k in range(2))
            gaps[judge.name] = first - second
        results += [_result(game, name, gap) for name, gap in gaps.items()]
    return results


def _scores(judge: Judge, game: Contest, side: int, batch: int = 32) -> Tensor:
    """(P,) scores of one side of the pairs."""
    parts = [
        judge.score(game.pictures[i : i + batch, side].float() / 255, game.prompts[i : i + batch])
        for i in range(0, len(game.prompts), batch)
    ]
    return torch.tensor([score for part in parts for score in part], dtype=torch.float64)


def _result(game: Contest, name: str, gap: Tensor) -> Result:
    decided = game.votes != 0.5
    if not decided.any():
        raise ValueError(f"{game.name}: every vote is a tie; take more pairs")
    # An equal score says nothing, which is right half of the time.
    right = torch.where(gap == 0, 0.5, ((gap > 0) == (game.votes > 0.5)).double())[decided]
    prompts = [p for p, yes in zip(game.prompts, decided.tolist(), strict=True) if yes]
    share = share_by_prompt(right.tolist(), prompts)
    return Result(
        contest=game.name, scorer=name, accuracy=share.value, low=share.low, high=share.high,
        votes=len(prompts),
    )  # fmt: skip


def markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """Table of results, as they stand in the json file: a row for each scorer, a column for each contest."""
    columns = list(dict.fromkeys(r["contest"] for r in results))
    cells = {
        (r["scorer"], r["contest"]): f"{r['accuracy']:.1%} [{r['low']:.1%}, {r['high']:.1%}]" for r in results
    }
    rows = list(dict.fromkeys(r["scorer"] for r in results))
    lines = ["| scorer | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    return "\n".join([*lines, *(f"| {s} | " + " | ".join(cells[s, c] for c in columns) + " |" for s in rows)])
