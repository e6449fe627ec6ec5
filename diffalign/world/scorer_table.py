"""What each kind of scorer learns of simulated votes, beside the best that the voters' own noise allows."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from diffalign.assets import asset
from diffalign.world.clip import FINETUNE, best_possible, simulate_votes
from diffalign.world.raters import Rater, named_rater
from scorers.accuracy import Accuracy
from scorers.gpm import GPM
from scorers.learners import Loss
from scorers.mps import Mps, MpsModel, MpsOptions
from scorers.nima import NIMA, NIMAOptions
from scorers.pickscore import PickScore
from scorers.train import TrainOptions, Vote, evaluate, train_scorer
from scorers.votes import Item, Rating

logger = logging.getLogger(__name__)

TASTES = {
    "large": "large small large small large small large small",
    "warm": "red orange red orange red orange red orange",
    "dark": "black gray black gray black gray black gray",
    "left": "left of left of left of left of",
}
"""Four tastes, with the words of their conditions: words that the tokenizer knows, and many of them, since
the padding of short texts is alike in all."""


MPS = "MPS type"


@dataclass(frozen=True, kw_only=True)
class TablePlan:
    """How much is simulated and trained; the defaults make docs/scorers_table.md."""

    tower: str = "samples/shapes/scorer"
    """CLIP to start from; it was trained on votes of the taste large, so the others are new to it."""
    taste: str = "warm"
    """Whose votes the scorers of one taste learn."""
    votes: int = 5000
    """Votes to learn from, a tenth of which choose the step."""
    heldout: int = 1000
    """Votes on prompts that nobody learnt from."""
    steps: int = 450
    """Steps of towers that learn one taste."""
    mps_steps: int = 1500
    """Steps of MPS, which learns four tastes at once, of twenty thousand votes."""
    head_steps: int = 400
    """Steps of heads on frozen towers."""
    users: int = 20
    """People of PAL, half of either group."""
    seed: int = 0

    def towers(self, loss: Loss = "pickscore") -> TrainOptions:
        """How towers are trained."""
        every = max(1, self.steps // 10)
        return replace(FINETUNE, steps=self.steps, loss=loss, eval_every=every, patience=10, seed=self.seed)

    def heads(self, loss: Loss = "bradley-terry", rate: float = 3e-3) -> TrainOptions:
        """How heads are trained."""
        return replace(
            self.towers(loss), steps=self.head_steps, learning_rate=rate, head_rate=0.05, weight_decay=0.0,
            eval_every=max(1, self.head_steps // 10),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    scorer: str
    what: str
    """What was learnt, and by which loss."""
    found: Accuracy
    ceiling: Accuracy
    """Of the voters' noise-free utility on the same votes."""

    @property
    def share(self) -> float:
        """Tie-aware accuracy over the ceiling's."""
        return self.found.accuracy / self.ceiling.accuracy


@dataclass(frozen=True, kw_only=True)
class Ballots:
    """Votes of one person, split, with the best possible accuracy on the held-out ones."""

    train: list[Vote]
    validation: list[Vote]
    heldout: list[Vote]
    ceiling: Accuracy


def ballots_of(rater: Rater, plan: TablePlan, votes: int, heldout: int, number: int = 0) -> Ballots:
    """Simulate one person's votes; ``number`` tells apart people with the same plan."""
    rng = np.random.default_rng([plan.seed, 7, number])
    train, _ = simulate_votes(votes, rater, rng)
    held, gap = simulate_votes(heldout, rater, rng, "heldout")
    labels = torch.tensor([vote.label for vote in held])
    cut = max(1, votes // 10)
    return Ballots(
        train=train[cut:], validation=train[:cut], heldout=held, ceiling=best_possible(gap, labels, rater)
    )


def tower(plan: TablePlan) -> PickScore:
    """The CLIP that all start from."""
    return PickScore.load(asset(plan.tower))


def row(
    name: str, what: str, scorer: nn.Module, data: Ballots, options: TrainOptions, items: Any = None
) -> Row:
    """Train a scorer and measure it on held-out votes."""
    learn: Sequence[Item] = data.train if items is None else items
    run = train_scorer(scorer, learn, data.validation, options)
    found = evaluate(scorer, data.heldout, run.validation.threshold)
    logger.info("%s: %.3f of %.3f", name, found.accuracy, data.ceiling.accuracy)
    return Row(scorer=name, what=what, found=found, ceiling=data.ceiling)


def one_taste(plan: TablePlan) -> list[Row]:
    """Scorers of one taste: towers by three published losses and by lists, heads on frozen towers."""
    data, start = ballots_of(named_rater(plan.taste), plan, plan.votes, plan.heldout), tower(plan)
    untrained = evaluate(start, data.heldout, 0.0)
    rows = [Row(scorer="before", what="the CLIP all start from", found=untrained, ceiling=data.ceiling)]
    kinds: tuple[tuple[str, str, Loss], ...] = (
        ("PickScore type", "softmax of two, ties", "pickscore"),
        ("HPS type", "summed cross-entropy", "hpsv2"),
        ("ImageReward type", "Bradley-Terry on the same towers", "bradley-terry"),
        ("listwise", "Plackett-Luce on the same towers", "listwise"),
    )
    for name, what, loss in kinds:
        rows.append(row(name, what, copy.deepcopy(start), data, plan.towers(loss)))
    rows.append(row("GPM", "circles on frozen towers", GPM.create(start), data, plan.heads()))
    marks = [*ratings(data.train)]
    nima = NIMA.create(start, NIMAOptions(dropout=0.0))
    rows.append(row("NIMA", "marks on frozen towers, prompt unseen", nima, data, plan.heads("emd"), marks))
    return rows


def ratings(votes: Sequence[Vote]) -> list[Rating]:
    """A vote as two marks: 10 for the winner, 1 for the loser, 5.5 for both sides of a tie."""
    return [
        Rating(image, v.prompt, (1 + 9 * share,))
        for v in votes
        for image, share in ((v.first, v.label), (v.second, 1 - v.label))
    ]


def four_tastes(plan: TablePlan) -> tuple[list[Row], list[list[float]]]:
    """MPS with a condition for each of four tastes, and (4, 4) accuracy of condition i on votes of taste j.

    It separates them if each condition is the best on its own votes.
    """
    start = tower(plan)
    conditions = {name: words for name, words in TASTES.items()}
    options = MpsOptions(
        conditions=conditions, threshold=0.0, read_condition=True, layers=2, heads=4, dim_head=16, mult=2
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        scorer = Mps(MpsModel(copy.deepcopy(start.clip), options), start.tokenizer, options)
    scorer.towers.cross_model.silence()
    data = {
        name: ballots_of(named_rater(name), plan, plan.votes, plan.heldout, i)
        for i, name in enumerate(TASTES, 1)
    }
    learn = _told([(name, v) for name, d in data.items() for v in d.train], plan)
    choose = _told([(name, v) for name, d in data.items() for v in d.validation], plan)
    every = max(1, plan.mps_steps // 10)
    longer = replace(plan.towers(), steps=plan.mps_steps, eval_every=every, head_rate=3e-3)
    run = train_scorer(scorer, learn, choose, longer)
    threshold = run.validation.threshold
    grid = [
        [evaluate(scorer, _under(name, data[other].heldout), threshold) for other in TASTES]
        for name in TASTES
    ]
    rows = [
        Row(
            scorer=MPS,
            what=f"condition {name!r}, whose words the picture reads too",
            found=grid[i][i],
            ceiling=data[name].ceiling,
        )
        for i, name in enumerate(TASTES)
    ]
    return rows, [[found.decided for found in line] for line in grid]


def _under(name: str, votes: Sequence[Vote]) -> list[Vote]:
    return [vote._replace(dim=name) for vote in votes]


def _told(votes: Sequence[tuple[str, Vote]], plan: TablePlan) -> list[Vote]:
    """Votes with their conditions, mixed."""
    order = np.random.default_rng([plan.seed, 8]).permutation(len(votes))
    return [votes[i][1]._replace(dim=votes[i][0]) for i in order]


PARTS = ("one_taste", "four_tastes", "alone", "pal", "gpm", "drm")
"""What the table is made of; each can be made again on its own."""


def make_table(plan: TablePlan, out: Path, parts: Sequence[str] = PARTS) -> dict[str, Any]:
    """Train and write ``out`` (markdown) and the same with ``.json`` beside it.

    Args:
        plan: how much of everything.
        out: markdown file.
        parts: what is made; the rest is kept as the JSON file has it.

    Returns:
        The content of the JSON file.

    Raises:
        ValueError: no such part, or no file that has the others.
    """
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        raise ValueError(f"there is no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    file = out.with_suffix(".json")
    if set(parts) != set(PARTS) and not file.is_file():
        raise ValueError(f"{file} is not there to take the other parts from: make all of them")
    found: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.is_file() else {"rows": []}
    for part in parts:
        _remake(part, plan, found)
    found["plan"] = asdict(plan)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    out.write_text(markdown(found), encoding="utf-8")
    return found


def _remake(part: str, plan: TablePlan, found: dict[str, Any]) -> None:
    """Put one part into the content of the JSON file."""
    from diffalign.world.scorer_studies import alone, circle, directions, groups

    def listed(rows: Sequence[Row]) -> list[dict[str, Any]]:
        return [{**asdict(r), "share_of_ceiling": r.share} for r in rows]

    several = [r for r in found["rows"] if r["scorer"] == MPS]
    others = [r for r in found["rows"] if r["scorer"] != MPS]
    match part:
        case "one_taste":
            found["rows"] = listed(one_taste(plan)) + several
        case "four_tastes":
            rows, grid = four_tastes(plan)
            found["rows"] = others + listed(rows)
            found["mps_separation"] = {"tastes": list(TASTES), "decided": grid}
        case "alone":
            found["alone"] = alone(plan)
        case "pal":
            found["pal"] = groups(plan)
        case "gpm":
            found["gpm"] = circle(plan)
        case "drm":
            found["drm"] = directions(plan)


def markdown(found: dict[str, Any]) -> str:
    """The page of what ``make_table`` found."""
    plan, pal, gpm = found["plan"], found["pal"], found["gpm"]
    lines = [
        "# What scorers learn of simulated votes",
        "",
        f"{plan['votes']} votes of simulated people of the shapes world, {plan['heldout']} more on held-out "
        "prompts. The ceiling is the accuracy of the voters' own noise-free utility on the same votes. Made "
        "by `training/scorer_table.py`.",
        "",
        "| scorer | learns | accuracy (ties count) | ceiling | share | strict | pairs | calibration error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in found["rows"]:
        a, c = r["found"], r["ceiling"]
        lines.append(
            f"| {r['scorer']} | {r['what']} | {a['accuracy']:.3f} | {c['accuracy']:.3f} | "
            f"{r['share_of_ceiling']:.1%} | {a['strict']:.3f} | {a['pairs_micro']:.3f} | "
            f"{a['calibration_error']:.3f} |"
        )
    tastes, grid = found["mps_separation"]["tastes"], found["mps_separation"]["decided"]
    lines += ["", "MPS, accuracy of each condition (rows) on the votes of each taste (columns):", ""]
    lines += ["| |" + "|".join(tastes) + "|", "|---" * (len(tastes) + 1) + "|"]
    lines += [
        f"| {t} |" + "|".join(f"{v:.3f}" for v in line) + "|" for t, line in zip(tastes, grid, strict=True)
    ]
    lines += [
        "",
        "A PickScore type that learns the same votes of one of these tastes alone, share of the ceiling: "
        + ", ".join(f"{k} {v:.1%}" for k, v in found["alone"].items())
        + ".",
        "",
        f"PAL: adjusted Rand index of {pal['users']} people in two groups {pal['adjusted_rand']:.2f}; "
        f"accuracy {pal['accuracy']:.3f} with people, {pal['without_people']:.3f} without, ceiling "
        f"{pal['ceiling']:.3f}; new people after 8 votes each {pal['new_people']:.3f}.",
        "",
        f"GPM on a planted circle (red over green over blue over red): {gpm['gpm']:.3f}; Bradley-Terry "
        f"{gpm['bradley_terry']:.3f}; ceiling {gpm['ceiling']:.3f}. On a plain order of the same colours: "
        f"GPM {gpm['order_gpm']:.3f}, Bradley-Terry {gpm['order_bradley_terry']:.3f}. Both are heads with a "
        f"hidden layer on the same features, of {gpm['parameters_gpm']:.0f} and "
        f"{gpm['parameters_bradley_terry']:.0f} parameters.",
        "",
        "DRM, best correlation of a direction with a planted taste: "
        + ", ".join(f"{k} {v:.2f}" for k, v in found["drm"].items())
        + ".",
    ]
    return "\n".join(lines) + "\n"
