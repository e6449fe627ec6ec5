"""The people of a training run: what each batch is conditioned on of them, and what is given out of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffalign.data.loader import Batch
from diffalign.data.records import DataError, ImageSource, Record
from diffalign.diffusion.corrupt import draw_seed
from diffalign.objectives.base import Objective
from diffalign.objectives.own_other import OwnOther
from diffalign.personalize.adapter import UserAdapter, save_adapter
from diffalign.personalize.encoders import About, Profile
from diffalign.personalize.encoders.about import pad_examples
from diffalign.personalize.encoders.base import Encoded
from diffalign.personalize.encoders.table import Table
from diffalign.personalize.evidence import Evidence, PairFeatures, Profiles, embed_pairs
from diffalign.personalize.foretell import foretell
from diffalign.personalize.history import Histories
from diffalign.personalize.profiles import read_profiles
from diffalign.personalize.training import dispersion, info_nce, keep_users
from diffalign.personalize.users import Kind, Users
from diffalign.personalize.wanted import FOLDER
from diffalign.policy import Policy
from diffalign.policy.modes import evaluating
from diffalign.train.blocks import OptimConfig
from diffalign.train.conditions import Conditions, first_rows, unit_conditions
from diffalign.train.config import TrainConfig
from diffalign.train.optim import RELATIVE
from diffalign.train.people import PeopleConfig


class People:
    """Describes the raters of batches to the policy's user encoder, on every process alike.

    Args:
        config: recipe.
        adapter: the policy's.
        evidence: what is known of whom.
    """

    def __init__(self, config: TrainConfig, adapter: UserAdapter, evidence: Evidence) -> None:
        """See the class."""
        assert config.people is not None
        self.config: PeopleConfig = config.people
        self.adapter, self.evidence, self.histories = adapter, evidence, evidence.histories
        self.raters = raters_of(self.histories)
        self.compares, self.contrasts = compared(config)

    def conditions(self, batch: Batch, units: Sequence[int]) -> Conditions:
        """See Conditioner."""
        first = first_rows(batch.group)
        positions, seeds = [int(batch.sample[i]) for i in first], [units[i] for i in first]
        keep = keep_users(seeds, self.config.dropout)
        own = self._encoded(self.evidence.about(positions, seeds), keep)
        losses = self._losses(own, positions, seeds)
        if not self.compares:
            return unit_conditions(batch.group, own.tokens, losses=losses)
        people, against = self._others(positions, seeds)
        # nobody is compared with nobody: what a dropped unit adds to the contrast has no gradient
        other = self._encoded(self.evidence.about(positions, seeds, people), keep)
        return unit_conditions(batch.group, own.tokens, other.tokens, against & keep, losses)

    def _encoded(self, about: About, keep: Tensor) -> Encoded:
        encoder = self.adapter.encoder
        device = encoder.nobody.device
        return encoder.encoded(about.to(device), keep.to(device))

    def _others(self, positions: Sequence[int], seeds: Sequence[int]) -> tuple[list[str], Tensor]:
        """For each unit another person, if possible who sees it the other way round, and (U,) whether so."""
        known = self.histories.people if "examples" in self.evidence.needs else self.raters
        found, against = [], []
        for position, seed in zip(positions, seeds, strict=True):
            opponents = self.histories.opponents(position)
            choice = opponents or [p for p in known if p != self.histories.raters[position]]
            found.append(choice[draw_seed("other user", seed) % len(choice)])
            against.append(bool(opponents))
        return found, torch.tensor(against)

    def _losses(self, own: Encoded, positions: Sequence[int], seeds: Sequence[int]) -> dict[str, Tensor]:
        config, found, tokens = self.config, dict[str, Tensor](), own.tokens
        if not (config.info_nce or config.dispersion or config.kl):
            return found
        people = [self.histories.raters[p] or "" for p in positions]
        kept = [i for i, known in enumerate(own.known.tolist()) if known] if own.known is not None else []
        if config.info_nce:
            again = [draw_seed("second votes", seed) for seed in seeds]
            second = self._encoded(
                self.evidence.about(positions, again), torch.ones(len(seeds), dtype=torch.bool)
            )
            names = [people[i] for i in kept]
            loss = info_nce(tokens[kept], second.tokens[kept], names) if kept else 0 * tokens.sum()
            found["info_nce"] = config.info_nce * loss
        if config.dispersion:
            one = [i for n, i in enumerate(kept) if people[i] not in {people[j] for j in kept[:n]}]
            loss = dispersion(tokens[one]) if len(one) > 1 else 0 * tokens.sum()
            found["dispersion"] = config.dispersion * loss
        if config.kl:
            assert own.kl is not None  # make_people has looked
            found["kl"] = config.kl * own.kl.mean()
        return found

    # ------------------------------------------------------------------ what is given out

    @torch.no_grad()
    def tokens(self, name: str) -> Tensor:
        """See Conditioner."""
        row = torch.tensor([self.raters.index(name)])  # make_people has looked
        encoder = self.adapter.encoder
        with evaluating(encoder):
            found: Tensor = encoder(self._everybody().take(row).to(encoder.nobody.device))[0]
        return found

    def export(self, folder: Path) -> Path:
        """Write the adapter and its people into a new folder of an export, and return it.

        An export of before, in which people may have been added or deleted since, is left as it is.
        """
        target = save_adapter(self.adapter, free_folder(folder))
        vectors, kind = self._vectors()
        votes = {rater: len(self.histories.of.get(rater, ())) for rater in self.raters}
        Users(target, kind).add_all(dict(zip(self.raters, vectors, strict=True)), votes=votes)
        return target

    @torch.no_grad()
    def _vectors(self) -> tuple[Tensor, Kind]:
        """Everybody's vector: the rows of a table, else the tokens that the encoder gives them."""
        encoder = self.adapter.encoder
        if isinstance(encoder, Table):
            return encoder.people.detach().cpu(), "tokens" if encoder.prototypes is None else "weights"
        with evaluating(encoder):
            return encoder(self._everybody().to(encoder.nobody.device)).cpu(), "tokens"

    def _everybody(self) -> About:
        needs, evidence, examples = self.evidence.needs, self.evidence, None
        if "examples" in needs:
            features = evidence.features or {}
            rng = np.random.default_rng(0)
            votes = [
                [features[p] for p in self.histories.support(rater, evidence.most, rng)]
                if rater in self.histories.of
                else []
                for rater in self.raters
            ]
            examples = pad_examples(votes)
        profile = evidence.profiles(self.raters) if evidence.profiles is not None else None
        rows = torch.arange(len(self.raters)) if "rows" in needs else None
        return About(rows=rows, examples=examples, profile=profile)


def make_people(config: TrainConfig, policy: Policy, records: Sequence[Record]) -> People:
    """Attach a user encoder to the policy, and gather what is known of the raters of the records.

    Args:
        config: recipe with people.
        policy: on its device, before its reference is fixed.
        records: those that the loader's positions mean.

    Raises:
        DataError: records without a rater, or only one where an objective compares people.
        ValueError: the model takes no people, or the features' scorer has no towers.
        RuntimeError: the backend of the attention cannot be used.
    """
    options = config.people
    assert options is not None
    histories = Histories(records, image_names(records))
    raters = raters_of(histories)
    _check_raters(config, histories, raters)
    evidence = Evidence(
        options.encoder.needs, histories, table=raters, features=_features(options, records, histories),
        profiles=None if options.profiles is None else _profiles(Path(options.profiles), raters),
        most=options.votes,
    )  # fmt: skip
    adapter = add_adapter(config, policy, len(raters))
    if options.foretell:
        with torch.random.fork_rng(devices=[]):  # the same encoder on every process and after a resume
            torch.manual_seed(draw_seed("foretell", config.seed))
            foretell(
                adapter.encoder, histories, evidence.features or {}, steps=options.foretell,
                votes=options.votes, seed=config.seed,
            )  # fmt: skip
    if options.kl and not _is_variational(adapter.encoder):
        raise ValueError("people.kl is for variational encoders: set variational in the encoder, or kl to 0")
    return People(config, adapter, evidence)


def add_adapter(config: TrainConfig, policy: Policy, people: int = 0) -> UserAdapter:
    """Attach a new adapter to the policy: the same weights on every process and after a resume."""
    options = config.people
    assert options is not None
    branch = replace(options.branch, base=options.branch.base or config.policy.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw_seed("people", config.seed))
        return policy.add_users(options.encoder, branch, people=people, only=options.only)


def free_folder(export: Path) -> Path:
    """A new folder of people in an export: those of before may have been changed since."""
    target, i = export / FOLDER, 1
    while target.exists():
        i += 1
        target = export / f"{FOLDER}-{i}"
    return target


def compared(config: TrainConfig) -> tuple[bool, bool]:
    """Whether an objective compares conditions with one another, and whether it learns of that."""
    objectives = [t.objective for t in config.all_terms if "other_error" in t.objective.needs]
    return bool(objectives), any(_trains_contrast(o) for o in objectives)


def parameter_groups(
    adapter: UserAdapter, parameters: Sequence[nn.Parameter], people: PeopleConfig, optim: OptimConfig
) -> list[dict[str, Any]]:
    """Groups of an optimizer: those of people with rates of their own, and the rest with the recipe's."""
    theirs = {id(p) for p in adapter.parameters()}
    rest = [p for p in parameters if id(p) not in theirs]
    groups = adapter.groups(people.encoder_rate, people.branch_rate, optim.weight_decay)
    relative = [group | {RELATIVE: group["lr"] / optim.learning_rate} for group in groups]
    return ([{"params": rest}] if rest else []) + relative


def image_names(records: Sequence[Record]) -> list[list[str]]:
    """A name of each image of each record, the same where the bytes are."""
    return [[_name(image) for image in record.images] for record in records]


def raters_of(histories: Histories) -> list[str]:
    """All raters, in the order in which they come: that of the rows of a table."""
    return list(dict.fromkeys(rater for rater in histories.raters if rater is not None))


def _name(image: ImageSource) -> str:
    try:
        return hashlib.sha256(image.read()).hexdigest()
    except OSError:
        return image.where  # the loader leaves such a record out, and says so


def _check_raters(config: TrainConfig, histories: Histories, raters: Sequence[str]) -> None:
    nameless = sum(rater is None for rater in histories.raters)
    if nameless:
        raise DataError(
            f"{nameless} of {len(histories.raters)} records do not say who judged: leave them out, or train "
            "without the people block"
        )
    strangers = [name for name in config.people.show if name not in raters] if config.people else []
    if strangers:
        raise DataError(
            f"people.show names {strangers[0]!r}, who has judged nothing: name raters of the data"
        )
    compares = any("other_error" in t.objective.needs for t in config.all_terms)
    if compares and len(raters) < 2:
        raise DataError("the objective compares people, and one person has judged all: take dpo alone")


def _features(
    options: PeopleConfig, records: Sequence[Record], histories: Histories
) -> dict[int, PairFeatures] | None:
    """Features of all decided pairs, where the encoder reads votes."""
    if "examples" not in options.encoder.needs:
        return None
    import scorers

    towers = scorers.load_spec(options.branch.features)
    if not (hasattr(towers, "encode_images") and hasattr(towers, "encode_prompts")):
        raise ValueError(
            f"people.branch.features is {options.branch.features}, which has no towers: name a scorer with "
            "two, such as pickscore"
        )
    return embed_pairs(records, histories, towers)


def _profiles(path: Path, raters: Sequence[str]) -> Profiles:
    """Profiles by raters, read once."""
    every = read_profiles(path, raters)
    if not bool(every.mask.any()):
        raise DataError(f"{path} has a profile of none of {len(raters)} raters: write them by their names")
    places = {rater: i for i, rater in enumerate(raters)}

    def profiles(people: Sequence[str]) -> Profile:
        rows = torch.tensor([places[p] for p in people])
        return Profile(states=every.states[rows], mask=every.mask[rows])

    return profiles


def _is_variational(encoder: nn.Module) -> bool:
    return any(getattr(module, "posterior", None) is not None for module in encoder.modules())


def _trains_contrast(objective: Objective) -> bool:
    """Whether a gradient flows into ``other_error``: only an own_other of weight 0 merely measures it."""
    if isinstance(objective, OwnOther):
        return objective.weight > 0
    inner = getattr(objective, "pair", None)
    return _trains_contrast(inner) if isinstance(inner, Objective) else True
