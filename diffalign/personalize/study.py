"""Does it help? A population of simulated people, both stages of PPD, and everything measured on the unseen.

The judge of each person is their own noise-free utility: nothing has learnt from it. Pictures are of prompts
and seeds that nobody voted on, the same for everybody; votes that describe the unseen are on pictures apart.
"""

from __future__ import annotations

import itertools
import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffalign.atomic import write_bytes
from diffalign.data.records import Record
from diffalign.evaluate.generate import Sampling
from diffalign.league.config import merged
from diffalign.personalize.encoders.about import Examples, pad_examples
from diffalign.personalize.evidence import PairFeatures, embed_pairs
from diffalign.personalize.guidance import interpolate
from diffalign.personalize.history import Histories
from diffalign.personalize.new_user import encode, nearest_mean
from diffalign.personalize.study_asking import asked_first, differences
from diffalign.personalize.study_pictures import Shelf, Studio, open_studio
from diffalign.personalize.study_words import WORDS, said
from diffalign.train.config import TrainConfig
from diffalign.world.population import PopulationConfig, population_prompts, taste_weights

log = logging.getLogger(__name__)

EVERYBODY, SINGLE = "everybody", "single"
"""Folders of the two stages: the LoRA for all people, then encoder and layers of single ones."""
MAIN = 4
"""Votes by which the figures of the table know a person."""


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """What is measured."""

    prompts: int = 6
    """Held-out prompts, one picture of each for every person."""
    curve_prompts: int = 3
    """Of them so many for the curve over votes, for seen people and for baselines of tokens."""
    votes: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of votes of the curve."""
    seen: int = 24
    """Seen people who are looked at."""
    base_seeds: int = 4
    """Pictures of the base for each prompt, whose spread is the unit of the tie margin."""
    nearest: int = 5
    """Known people whose mean stands for somebody new."""
    amounts: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Shares of the second of two people of opposite tastes."""
    mixed_seeds: int = 1
    """Pictures of each prompt and share."""
    lora_people: int = 4
    """Unseen people, one of each taste in turn, who get a LoRA of their own."""


@dataclass(frozen=True, kw_only=True)
class PipelineStudy:
    """Recipes of one pipeline."""

    everybody: dict[str, Any]
    """Recipe of the first stage."""
    single: dict[str, Any]
    """What the second stage changes in it."""
    lora: dict[str, Any] = field(default_factory=dict)
    """What a LoRA of one person changes in it."""
    user_guidance: float | None = None
    """Weight of guidance of its own for people, see ``Attached.use``; None has them in the usual one."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """One pipeline of a study, with its folder of runs and pictures."""

    name: str
    recipes: PipelineStudy
    options: StudyOptions
    root: Path

    @property
    def config(self) -> TrainConfig:
        """Resolved recipe of the first stage."""
        from diffalign.train.align import load_recipe

        return load_recipe(self.recipes.everybody)

    @property
    def people(self) -> PopulationConfig:
        """Who there is.

        Raises:
            ValueError: the recipe names no population.
        """
        world = self.config.data.world
        if world is None or world.population is None:
            raise ValueError(f"the recipe of {self.name} has no data.world.population: say who votes")
        return world.population

    @property
    def sampling(self) -> Sampling:
        """How all pictures are made."""
        evaluate = self.config.evaluate
        return Sampling(steps=evaluate.steps, guidance=evaluate.guidance)

    @property
    def prompts(self) -> tuple[str, ...]:
        """Held-out prompts of the study, evenly out of all."""
        every = population_prompts("heldout")
        return tuple(str(p) for p in every[:: max(1, len(every) // self.options.prompts)])[
            : self.options.prompts
        ]

    # ------------------------------------------------------------------ training

    def train(self) -> dict[str, float]:
        """Train both stages where they are missing; CPU seconds of each."""
        second = {"policy": {"adapter": {"init_from": str(self.root / EVERYBODY / "export")}}}
        first = self._run(EVERYBODY, self.recipes.everybody)
        changed = merged(merged(self.recipes.everybody, self.recipes.single), second)
        return {EVERYBODY: first, SINGLE: self._run(SINGLE, changed)}

    def train_loras(self) -> list[str]:
        """Train a LoRA for each of some unseen people from all of their votes; their names."""
        names = self.people.unseen[: self.options.lora_people]
        start = {"policy": {"adapter": {"init_from": str(self.root / EVERYBODY / "export")}}}
        recipe = merged(merged(self.recipes.everybody, self.recipes.lora), start)
        votes = self.votes(names)
        for name in names:
            self._run(f"lora-{name}", recipe, [r for r in votes if r.rater == name])
        return names

    def lora_seconds(self, names: Sequence[str]) -> float:
        """CPU seconds of the LoRAs of all of them."""
        return sum(
            float(json.loads((self.root / f"lora-{n}" / "cost.json").read_text())["cpu"]) for n in names
        )

    def _run(self, name: str, recipe: Mapping[str, Any], records: Sequence[Record] | None = None) -> float:
        """CPU seconds of a run, made or finished where it has not ended."""
        from diffalign.train.align import align

        folder = self.root / name
        cost = folder / "cost.json"
        if not cost.exists():
            whole = {**recipe, "output": str(folder)}
            going_on = any((folder / "checkpoints").glob("*")) if folder.exists() else False
            if folder.exists() and not going_on:
                shutil.rmtree(folder)  # cut short before its first checkpoint
            start, wall = time.process_time(), time.monotonic()
            align(whole, records=records, resume=folder if going_on else None)
            seconds = {
                "cpu": time.process_time() - start,
                "wall": time.monotonic() - wall,
                "resumed": going_on,
            }
            write_bytes(cost, (json.dumps(seconds) + "\n").encode())
        return float(json.loads(cost.read_text())["cpu"])

    # ------------------------------------------------------------------ people

    def votes(self, names: Sequence[str]) -> list[Record]:
        """Votes of some people; the base's pictures are made where they are not kept."""
        from diffalign.policy import load_policy
        from diffalign.world.votes import crowd_records

        config, policy = self.config, load_policy(self.config.policy.model)
        policy.keep_base()
        assert config.data.world is not None
        return crowd_records(
            policy, config.data.world, names, Path(config.data.cache), sampling=self.sampling
        )

    def known(self, names: Sequence[str]) -> Known:
        """Votes of some people in the features of the second stage."""
        import scorers
        from diffalign.train.raters import image_names

        spec = merged(self.recipes.everybody, self.recipes.single)["people"]["branch"]["features"]
        records = self.votes(names)
        histories = Histories(records, image_names(records))
        return Known(histories.of, embed_pairs(records, histories, scorers.load_spec(spec)))

    @property
    def all_prompts(self) -> tuple[str, ...]:
        """All held-out prompts."""
        return tuple(str(p) for p in population_prompts("heldout"))

    def studio(self, lora: str = EVERYBODY, users: bool = True, every: bool = False) -> Studio:
        """Pipeline with the LoRA of a run, and with people; for the study's prompts, or for ``every`` one."""
        prompts, name = (self.all_prompts, "pictures-all") if every else (self.prompts, "pictures")
        shelf = Shelf(
            folder=self.root / name,
            prompts=prompts,
            sampling=self.sampling,
            user_guidance=self.recipes.user_guidance,
        )
        policy = self.config.policy
        assert policy.adapter is not None  # a LoRA is what all recipes with people train
        adapter = replace(policy.adapter, init_from=str(self.root / lora / "export"))
        folder = self.root / SINGLE / "export" / "users" if users else None
        return open_studio(policy.model, adapter, folder, shelf)

    # ------------------------------------------------------------------ pictures

    def pictures(self, studio: Studio) -> dict[str, Tensor]:
        """Every kind of picture of the study by name, made where it is missing."""
        options, people = self.options, self.people
        encoder = studio.encoder
        unseen, seen = self.known(people.unseen), self.known(people.seen)
        own = {k: encode(encoder, unseen.examples(people.unseen, k)) for k in options.votes}
        least = options.curve_prompts
        found = {"base": studio.base(options.base_seeds), "population": studio.everybody()}
        found[f"votes-{MAIN}"] = studio.people(f"votes-{MAIN}", own[MAIN])
        for k in options.votes:
            if k != MAIN:
                found[f"votes-{k}"] = studio.people(f"votes-{k}", own[k], least)
        asked = unseen.asked(people.unseen, seen, max(options.votes))
        for k in options.votes:
            tokens = encode(encoder, asked.examples(people.unseen, k))
            found[f"asked-{k}"] = studio.people(f"asked-{k}", tokens, least)
        some = encode(encoder, seen.examples(people.seen[: options.seen], MAIN))
        found["seen"] = studio.people("seen", some, least)
        known = encode(encoder, seen.examples(people.seen, max(options.votes)))
        found["nearest"] = studio.people("nearest", _nearest(own[MAIN], known, options.nearest), least)
        for word in (w for w in WORDS if w in people.tastes):
            found[f"said-{word}"] = studio.said(f"said-{word}", [said(p, word) for p in self.prompts])
        for one, other in self.opposites():
            ends = [own[max(options.votes)][people.unseen.index(n)] for n in (one, other)]
            conditions = [interpolate(ends[0], ends[1], a) for a in options.amounts]
            name = f"mixed-{one}-{other}"
            found[name] = studio.mixtures(name, conditions, options.mixed_seeds)
        return found

    def main_pictures(self, studio: Studio) -> dict[str, Tensor]:
        """What the main figures need: the base, the model for everybody, and people known by MAIN votes."""
        unseen = self.people.unseen
        name = f"votes-{MAIN}"
        own = encode(studio.encoder, self.known(unseen).examples(unseen, MAIN))
        base, everybody = studio.base(self.options.base_seeds), studio.everybody()
        return {"base": base, "population": everybody, name: studio.people(name, own)}

    def lora_pictures(self, names: Sequence[str]) -> dict[str, Tensor]:
        """(P, 3, H, W) pictures of each person's own LoRA."""
        runs = {name: f"lora-{name}" for name in names}
        return {n: self.studio(run, users=False).said(run, self.prompts) for n, run in runs.items()}

    def opposites(self) -> list[tuple[str, str]]:
        """Unseen people of opposite tastes of one axis, the first of each."""
        people = self.people
        first = {people.taste_of(name): name for name in reversed(people.unseen)}
        single = {t: w for t in people.tastes if len(w := taste_weights(t)) == 1}
        opposite = {
            (a, b) for a, b in itertools.combinations(single, 2) if _are_opposite(single[a], single[b])
        }
        return [(first[a], first[b]) for a, b in sorted(opposite) if a in first and b in first]


@dataclass(frozen=True)
class Known:
    """Votes of people, with their features."""

    of: Mapping[str, Sequence[int]]
    """Positions of each person's votes, in the order in which they come to be known."""
    features: Mapping[int, PairFeatures]

    def examples(self, names: Sequence[str], votes: int) -> Examples:
        """The first ``votes`` votes of each."""
        return pad_examples([[self.features[p] for p in self.of[n][:votes]] for n in names])

    def asked(self, names: Sequence[str], others: Known, votes: int) -> Known:
        """The same votes, in the order in which they would be asked for, of what ``others`` are like."""
        theirs = [differences(p, others.features) for p in others.of.values()]
        own = {n: self.of[n] for n in names}
        return replace(self, of=asked_first(own, self.features, theirs, votes))


def _nearest(tokens: Tensor, known: Tensor, count: int) -> Tensor:
    """(U, K, D) for each of U people the mean of those known people whose tokens are nearest to theirs."""
    gaps = torch.cdist(tokens.flatten(1), known.flatten(1))  # (U, people)
    return torch.stack([nearest_mean(known, -row, count) for row in gaps])


def _are_opposite(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    return one.keys() == other.keys() and all(one[axis] == -other[axis] for axis in one)
