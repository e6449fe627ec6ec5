"""Study: one model for every mixture of two rewards, against one model per reward.

In the shapes world, pairs of the base's pictures are labelled by two scorers. One run trains with directions
over both, drawn from three alone; two runs of the same length train on one scorer each. Then held-out prompts
are drawn for directions from one scorer to the other, of which two were never drawn in training, and beyond.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from diffalign.atomic import write_bytes
from diffalign.data.gaps import judged
from diffalign.data.records import Record
from diffalign.evaluate.generate import Sampling, generate, generate_base
from diffalign.evaluate.judge import load_judges
from diffalign.personalize.wanted import Wanted, attach_wanted
from diffalign.policy import Policy, load_policy
from diffalign.train.again import open_any
from diffalign.train.align import align
from diffalign.train.blocks import WorldConfig
from diffalign.train.checkpoint import newest
from diffalign.world.votes import world_prompts, world_records

Floats = NDArray[np.float64]
Say = Callable[[str], None]
BASE, NO_DIRECTION, DIRECTED = "base", "no direction", "directed"
OBEDIENCE = "shapes-obedience"


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """Size of the study."""

    model: str = "samples/shapes/unet"
    axes: tuple[str, str] = ("shapes-large", "shapes-dark")
    """The two scorers."""
    images: int = 600
    """Pictures of the base that are labelled, 8 of each prompt."""
    steps: int = 200
    """Optimizer steps of each of the three runs."""
    batch: int = 16
    prompts: int = 32
    """Held-out prompts."""
    seeds: int = 2
    """Pictures of each; the difference between two is the unit of gains."""
    rate: float = 1e-3
    """Learning rate of the LoRA."""
    user_guidance: float = 1.0
    """Guidance of its own for the direction: 1 is the strength that was trained, while in the usual guidance
    by 4 the direction, of which the unconditional branch knows nothing, would count 4 times."""
    encoder_rate: float = 1e-3
    """Learning rate of the encoder of directions."""
    branch_rate: float = 1e-3
    """Learning rate of the layers' keys and values."""

    @property
    def path(self) -> dict[str, str]:
        """Five directions from the first axis to the second, and two beyond, by what they are called."""
        a, b = self.axes
        mixed = {"3:1": f"{a}=3,{b}=1", "1:1": f"{a}=1,{b}=1", "1:3": f"{a}=1,{b}=3"}
        return {"1:0": f"{a}=1", **mixed, "0:1": f"{b}=1", "1:-1": f"{a}=1,{b}=-1", "-1:1": f"{a}=-1,{b}=1"}

    @property
    def among(self) -> list[str]:
        """Directions that are drawn in training."""
        return [self.path[name] for name in ("1:0", "1:1", "0:1")]

    @property
    def between(self) -> list[str]:
        """Names of the directions from one axis to the other."""
        return list(self.path)[:5]


Scores = dict[str, dict[str, Floats]]
"""(P, S) scores by model and scorer."""


def study(options: StudyOptions, runs: Path, say: Say) -> Scores:
    """Train what is not trained yet, and score the pictures of every model and direction.

    Args:
        options: size of the study.
        runs: folder of runs, pictures and scores; goes on with what is there.
        say: told what is being done.
    """
    cache = runs / "cache"
    policy = load_policy(options.model)
    policy.keep_base()
    records = scored_pairs(options, policy, cache)
    for name, recipe in recipes(options, cache).items():
        train(recipe, runs / name, records if name == DIRECTED else labelled_by(records, name), say)
    prompts = [str(p) for p in world_prompts("large", options.prompts, "heldout")]
    sampling, seeds = Sampling(), range(options.seeds)

    def base() -> Tensor:
        return generate_base(policy, prompts, seeds, sampling, cache)

    def of_run(name: str, direction: str = "") -> Tensor:
        opened = open_any(str(runs / name))
        if direction:
            attach_wanted(
                opened.pipeline, runs / name, Wanted(direction=direction, guidance=options.user_guidance)
            )
        return generate(opened, prompts, seeds, sampling)

    wanted: dict[str, Callable[[], Tensor]] = {BASE: base, NO_DIRECTION: partial(of_run, DIRECTED)}
    wanted |= {name: partial(of_run, DIRECTED, text) for name, text in options.path.items()}
    wanted |= {axis: partial(of_run, axis) for axis in options.axes}
    return {name: scored(options, prompts, make, runs, name, say) for name, make in wanted.items()}


def recipes(options: StudyOptions, cache: Path) -> dict[str, dict[str, Any]]:
    """Recipes by the names of their runs: one with directions, and one for each axis."""
    common = {
        "policy": {"model": options.model, "adapter": {"rank": 16}},
        "objective": {"name": "dpo", "beta": 3000},
        "data": {"path": "in memory", "resolution": 64, "prompt_dropout": 0.0, "cache": str(cache)},
        "timesteps": {"name": "uniform", "low": 0.8},
        "optim": {"learning_rate": options.rate, "warmup": 10, "schedule": "cosine", "weight_decay": 0.0},
        "steps": options.steps, "batch": options.batch, "ema": 0.98, "checkpoint_every": 40,
        "evaluate": {"prompts": 0},
    }  # fmt: skip
    people = {
        "encoder": {"name": "direction", "scorers": list(options.axes), "width": 128},
        "directions": {"among": options.among},
        "encoder_rate": options.encoder_rate,
        "branch_rate": options.branch_rate,
        "only": True,  # a LoRA beside it would learn what all directions share, and leave them the rest
    }
    return {DIRECTED: common | {"people": people}, **{axis: common for axis in options.axes}}


def scored_pairs(options: StudyOptions, policy: Policy, cache: Path) -> list[Record]:
    """Pairs of the base's pictures with the scores of both axes."""
    world = WorldConfig(taste="large", images=options.images, per_prompt=8, scorers=options.axes)
    return world_records(policy, world, cache)


def labelled_by(records: Sequence[Record], axis: str) -> list[Record]:
    """The pairs of which one scorer prefers a side, as it does."""
    scores = [judged(record, axis) for record in records]
    return [
        replace(record, values=(float(a > b), float(b > a)), soft=None, margin=None)
        for record, (a, b) in zip(records, scores, strict=True)
        if a != b
    ]


def train(recipe: Mapping[str, Any], run: Path, records: Sequence[Record], say: Say) -> None:
    """Train a run to its end, from its newest checkpoint where it has one."""
    if (run / "export").exists():
        return
    say(f"training {run.name}")
    if newest(run / "checkpoints") is not None:
        align({}, records=records, resume=run)
        return
    shutil.rmtree(run, ignore_errors=True)  # cut short before its first checkpoint
    align({**recipe, "output": str(run)}, records=records)


def scored(
    options: StudyOptions, prompts: Sequence[str], make: Callable[[], Tensor], runs: Path, name: str, say: Say
) -> dict[str, Floats]:
    """(P, S) scores of a model's pictures by both axes and the oracle of obedience; kept in a file."""
    file = runs / "scores" / f"{name.replace(' ', '-')}.json"
    if not file.exists():
        say(f"pictures of {name}")
        pictures, judges = make(), load_judges([*options.axes, OBEDIENCE], [])
        found = {judge.name: judge.score(pictures, prompts).tolist() for judge in judges}
        write_bytes(file, json.dumps(found).encode())
    return {judge: np.array(rows) for judge, rows in json.loads(file.read_text("utf-8")).items()}
