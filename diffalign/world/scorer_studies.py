"""Studies of scorers with structure on planted data: groups of people, a circle, directions of tastes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffalign.world.clip import simulate_votes
from diffalign.world.grammar import parse
from diffalign.world.raters import named_rater
from diffalign.world.scorer_table import TASTES, Ballots, TablePlan, ballots_of, row, tower
from diffalign.world.shapes import draw
from scorers.drm import DRMHeads
from scorers.featured import joint_inputs
from scorers.gpm import GPM, GPMHead, GPMOptions
from scorers.pal import Pal
from scorers.pal_heads import PalHead, PalOptions
from scorers.pickscore import PickScore
from scorers.train import Vote, evaluate, train_scorer

GROUPS = ("large", "small")
"""Tastes of the two groups of people."""
NEW = 4
"""New people of each group, with EIGHT votes each."""
EIGHT = 8
CIRCLE = ("red", "green", "blue")
"""Each beats the next, and the last the first."""


def alone(plan: TablePlan) -> dict[str, float]:
    """Shares of the ceiling, by taste, that a PickScore type reaches on the votes of that taste alone.

    The votes are those of ``four_tastes``: what MPS lacks here too, the towers do not see.
    """
    shares = {}
    for i, name in enumerate(TASTES, 1):
        data = ballots_of(named_rater(name), plan, plan.votes, plan.heldout, i)
        found = row("PickScore type", f"votes of {name!r} alone", tower(plan), data, plan.towers())
        shares[name] = found.share
    return shares


def groups(plan: TablePlan) -> dict[str, float]:
    """PAL: do the groups come out that were planted, and does a new person's taste after 8 votes?"""
    people = {f"person-{i:02d}": GROUPS[i % 2] for i in range(plan.users)}
    data = _people(plan, people)
    start = tower(plan)
    feature = start.clip.config.projection_dim
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        options = PalOptions(users=tuple(people), feature=feature, width=feature, mlp="mlp2-gelu-dropout0")
        pal = Pal(start, PalHead(options))
    train_scorer(pal, _join(data, "train"), _join(data, "validation"), plan.heads(rate=1e-3))
    found = pal.head.mixture(list(people)).argmax(1).tolist()
    held = _join(data, "heldout")
    labels = torch.tensor([v.label for v in held])
    everybody = torch.cat([pal_marginal(pal, held[i : i + 256]) for i in range(0, len(held), 256)])
    return {
        "users": len(people),
        "adjusted_rand": adjusted_rand(found, [GROUPS.index(taste) for taste in people.values()]),
        "accuracy": evaluate(pal, held, 0.0).accuracy,
        "without_people": float((1 - ((everybody > 0).float() - labels).abs()).mean()),
        "ceiling": float(np.mean([d.ceiling.accuracy for d in data.values()])),
        "new_people": float(np.mean([_new_person(pal, plan, i) for i in range(2 * NEW)])),
    }


def _people(plan: TablePlan, people: dict[str, str]) -> dict[str, Ballots]:
    votes, held = max(10, plan.votes // len(people)), max(10, plan.heldout // len(people))
    return {
        name: ballots_of(named_rater(taste), plan, votes, held, 100 + i)
        for i, (name, taste) in enumerate(people.items())
    }


def _join(data: dict[str, Ballots], part: str) -> list[Vote]:
    return [v._replace(user=name) for name, d in data.items() for v in getattr(d, part)]


@torch.no_grad()
def pal_marginal(pal: Pal, votes: Sequence[Vote]) -> Tensor:
    """(B,) log-odds of votes by the reward for everybody."""
    x01 = torch.stack([torch.as_tensor(v[side]) for side in (0, 1) for v in votes]).float() / 255
    first, second = pal.score_tensor(x01, [v.prompt for v in votes] * 2).chunk(2)
    return first - second


def _new_person(pal: Pal, plan: TablePlan, number: int) -> float:
    """Held-out accuracy for somebody new after 8 votes that are no ties."""
    taste = GROUPS[number % 2]
    rng = np.random.default_rng([plan.seed, 9, number])
    votes = [v for v in simulate_votes(4 * EIGHT, named_rater(taste), rng)[0] if v.label != 0.5][:EIGHT]
    first, second, prompts, labels = ([v[i] for v in votes] for i in range(4))
    name = f"new-{number}"
    pal.fit_user(name, first, second, prompts, labels)  # type: ignore[arg-type]
    held = ballots_of(named_rater(taste), plan, 10, max(20, plan.heldout // 10), 200 + number).heldout
    return evaluate(pal, [v._replace(user=name) for v in held], 0.0).accuracy


def adjusted_rand(found: Sequence[int], planted: Sequence[int]) -> float:
    """Adjusted Rand index of two partitions (Hubert and Arabie 1985): 1 the same, about 0 by chance.

    Raises:
        ValueError: not the same number of items.
    """
    if len(found) != len(planted):
        raise ValueError(f"{len(found)} and {len(planted)} items cannot be compared")
    a, b = np.unique(found, return_inverse=True)[1], np.unique(planted, return_inverse=True)[1]
    table = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(table, (a, b), 1)

    def pairs(counts: np.ndarray) -> float:
        return float((counts * (counts - 1) / 2).sum())

    both, rows, columns = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    expected = rows * columns / max(1.0, len(found) * (len(found) - 1) / 2)
    most = (rows + columns) / 2
    return 1.0 if most == expected else (both - expected) / (most - expected)


class WorthHead(GPMHead):
    """Bradley-Terry by the same network: the embedding (worth, 1), whose score is worth a - worth b."""

    def __init__(self, width: int, text_width: int, options: GPMOptions) -> None:
        """As GPMHead, with one number at the end."""
        super().__init__(width, text_width, options)
        self.value = nn.Linear(options.hidden, 1, bias=False)
        nn.init.normal_(self.value.weight, std=1 / (options.hidden + 1))

    def embed(self, inputs: Tensor) -> Tensor:
        """(B, 2)."""
        worth = super().embed(inputs)
        return torch.cat([worth, torch.ones_like(worth)], 1)


def rivals(start: PickScore, seed: int) -> dict[str, GPM]:
    """GPM, and Bradley-Terry on the same features, with a hidden layer and no fewer parameters."""
    options, width = GPMOptions(planes=2, hidden=64), start.clip.config.projection_dim
    each = 2 * width + 2  # parameters of a hidden unit with one output
    spare = math.ceil(options.hidden * (2 * options.planes - 1) / each)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = WorthHead(2 * width, width, replace(options, planes=1, hidden=options.hidden + spare))
        return {"gpm": GPM.create(start, options), "bradley_terry": GPM(start, head)}


def circle(plan: TablePlan) -> dict[str, float]:
    """GPM and Bradley-Terry of equal means on colours that beat each other in a circle, and in a plain order.

    The order is the control: what fails on the circle alone fails for its form, not for its capacity.
    """
    found: dict[str, float] = {"ceiling": CERTAIN}
    start = tower(plan)
    for what, cyclic in (("", True), ("order_", False)):
        train, held = (
            circle_votes(n, plan.seed + i, cyclic=cyclic) for i, n in enumerate((plan.votes, plan.heldout))
        )
        cut = max(1, len(train) // 10)
        for name, scorer in rivals(start, plan.seed).items():
            train_scorer(scorer, train[cut:], train[:cut], plan.heads())
            found[what + name] = evaluate(scorer, held, 0.0).accuracy
            found[f"parameters_{name}"] = sum(p.numel() for p in scorer.head.parameters())
    return found


CERTAIN = 0.95
"""How often the planted colour wins."""


def circle_votes(n: int, seed: int, *, cyclic: bool = True) -> list[Vote]:
    """Votes between pictures of two different colours, for a prompt that names none.

    Args:
        n: how many.
        seed: of pictures and voters.
        cyclic: each colour beats the next and the last the first; else each beats all that come later.
    """
    rng = np.random.default_rng([seed, 11])
    first = rng.integers(0, 3, n)
    second = (first + rng.integers(1, 3, n)) % 3
    pictures = [draw([parse(f"a {CIRCLE[i]} circle") for i in side], rng) for side in (first, second)]
    wins = (second - first) % 3 == 1 if cyclic else first < second
    labels = np.where(rng.random(n) < CERTAIN, wins, ~wins).astype(float)
    small = [(p.clamp(0, 1) * 255).round().byte() for p in pictures]
    rows = zip(*small, labels.tolist(), strict=True)
    return [Vote(a, b, "a circle", label) for a, b, label in rows]


def directions(plan: TablePlan, components: int = 8) -> dict[str, float]:
    """DRM: best correlation of any direction's score with each planted taste's utility, on held-out pairs.

    The directions come from the votes of four people of one taste each; nothing says whose is whose.
    """
    start = tower(plan)
    embedded = [
        _differences(start, ballots_of(named_rater(t), plan, plan.votes // len(TASTES), 10, 300 + i).train)
        for i, t in enumerate(TASTES)
    ]
    d = torch.cat(embedded)
    heads = DRMHeads.fit(d, torch.zeros_like(d), min(components, d.shape[1] - 1, len(d) - 1))
    return {taste: _alignment(start, heads, taste, plan, i) for i, taste in enumerate(TASTES)}


@torch.no_grad()
def _differences(start: PickScore, votes: Sequence[Vote], signed: bool = True) -> Tensor:
    """(N, 2D) winner minus loser of decided votes; first minus second where not ``signed``."""
    used = [v for v in votes if v.label != 0.5 or not signed]
    parts = []
    for i in range(0, len(used), 128):
        some = used[i : i + 128]
        x01 = torch.stack([torch.as_tensor(v[side]) for side in (0, 1) for v in some]).float() / 255
        text = start.encode_prompts([v.prompt for v in some] * 2)
        first, second = joint_inputs(start.encode_images(x01), text).chunk(2)
        sign = torch.tensor([1.0 if v.label > 0.5 or not signed else -1.0 for v in some])
        parts.append((first - second) * sign[:, None])
    return torch.cat(parts)


def _alignment(start: PickScore, heads: DRMHeads, taste: str, plan: TablePlan, number: int) -> float:
    rng = np.random.default_rng([plan.seed, 12, number])
    votes, gap = simulate_votes(
        max(40, plan.heldout // 4), named_rater(taste), rng, "heldout", stray=0, spoilt=0
    )
    scores = heads.scores(_differences(start, votes, signed=False))  # (N, 1 + 2k)
    table: Any = np.corrcoef(scores.T.numpy(), gap.numpy()[None])[-1, :-1]
    return float(np.abs(table).max())
