"""Figures of a study of people, from its pictures and everybody's own noise-free utility."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffalign.evaluate.stats import Floats
from diffalign.personalize.metrics import (
    Confusion,
    Curve,
    PersonalRate,
    compare_people,
    confusion,
    judge_sd,
    outcomes,
    personal_rate,
    vote_curve,
)
from diffalign.world.grammar import parse
from diffalign.world.oracle import Measurements, measure, obeys
from diffalign.world.population import PopulationConfig, taste_weights
from diffalign.world.raters import AXES, Rater

Scores = dict[str, Floats]


@dataclass(frozen=True, kw_only=True)
class Jury:
    """Everybody's judge, and the prompts that pictures are judged for."""

    people: PopulationConfig
    prompts: tuple[str, ...]
    raters: Mapping[str, Rater]
    sd: Mapping[str, float]
    """Unit of each judge's tie margin: seed-to-seed s.d. of the base."""
    base: Scores
    """(P,) score of the base's pictures of seed 0, by each judge."""

    def scores(self, names: Sequence[str], pictures: Tensor) -> Scores:
        """Scores of (P, 3, H, W) pictures by some judges, (P,) each; of (U, P, 3, H, W) ones (U, P)."""
        found, shape = _measured(pictures), pictures.shape[:-3]
        asked = [parse(p) for p in self.prompts[: shape[-1]]] * int(np.prod(shape[:-1]))
        return {n: self.raters[n].utility(found, asked).view(shape).double().numpy() for n in names}

    def own(self, names: Sequence[str], pictures: Tensor) -> Scores:
        """(P,) scores of (U, P, 3, H, W) pictures, each person's by their own judge."""
        every = self.scores(names, pictures)
        return {name: every[name][i] for i, name in enumerate(names)}

    def rate(self, ours: Scores, theirs: Scores) -> PersonalRate:
        """Win rate of each person's pictures over others of the same prompts and seeds."""
        cut = {n: theirs[n][..., : ours[n].shape[-1]] for n in ours}
        return compare_people(ours, cut, {n: self.sd[n] for n in ours})

    def over_base(self, ours: Scores) -> PersonalRate:
        """Win rate over the base."""
        return self.rate(ours, {n: self.base[n] for n in ours})


def make_jury(people: PopulationConfig, prompts: Sequence[str], base: Tensor) -> Jury:
    """Judges of everybody, for (P, S, 3, H, W) pictures of the base."""
    found, asked = _measured(base), [parse(p) for p in prompts for _ in range(base.shape[1])]
    raters = people.raters()
    scores = {n: r.utility(found, asked).view(base.shape[:2]).double().numpy() for n, r in raters.items()}
    first = {n: s[:, 0] for n, s in scores.items()}
    return Jury(people=people, prompts=tuple(prompts), raters=raters, sd=judge_sd(scores), base=first)


def figures(jury: Jury, pictures: Mapping[str, Tensor], votes: Sequence[int], main: int) -> dict[str, Any]:
    """All figures of a pipeline, as JSON."""
    people, unseen = jury.people, jury.people.unseen
    seen = people.seen[: len(pictures["seen"])]
    everybody = jury.scores(unseen, pictures["population"])
    rates = main_rates(jury, pictures, main) | {
        "seen": jury.over_base(jury.own(seen, pictures["seen"])),
        "user-blind: the model for everybody": jury.over_base(everybody),
        "user-blind, own against other tastes' pictures": jury.rate(everybody, everybody),
        "mean of the nearest seen people": jury.over_base(jury.own(unseen, pictures["nearest"])),
        "taste written into the prompt": jury.over_base(said(jury, pictures)),
    }
    grid = tastes(jury, pictures[f"votes-{main}"])
    matrix = retrieval(jury, pictures[f"votes-{main}"])
    return {
        "rates": {name: rate_json(found) for name, found in rates.items()},
        "curve": curve_json(curve_of(jury, pictures, votes)),
        "asked": curve_json(curve_of(jury, pictures, votes, "asked")),
        "obedience": obedience(jury, pictures, main),
        "tastes": _matrix(grid),
        "people": _matrix(matrix) | {"table": None},
        "interpolation": {n: mixed(jury, n, x) for n, x in pictures.items() if n.startswith("mixed-")},
        "by_taste": by_taste(people, rates["unseen"]),
    }


def curve_json(curve: Curve) -> dict[str, Any]:
    """A curve as JSON."""
    rates = [rate_json(r) for r in curve.rates]
    return {"votes": list(curve.votes), "rates": rates, "gain": asdict(curve.gain)}


def main_rates(jury: Jury, pictures: Mapping[str, Tensor], main: int) -> dict[str, PersonalRate]:
    """Rates of unseen people that something is asked of."""
    unseen, shown = jury.people.unseen, pictures[f"votes-{main}"]
    own = jury.own(unseen, shown)
    everybody = jury.scores(unseen, pictures["population"])
    return {
        "unseen": jury.over_base(own),
        "unseen, over the model for everybody": jury.rate(own, everybody),
        "unseen, own against other tastes' pictures": swap_rate(jury, shown),
    }


def main_figures(jury: Jury, pictures: Mapping[str, Tensor], main: int) -> dict[str, Any]:
    """Rates of unseen people and obedience, as JSON."""
    rates = {name: rate_json(found) for name, found in main_rates(jury, pictures, main).items()}
    return {"rates": rates, "obedience": obedience(jury, pictures, main), "prompts": len(jury.prompts)}


def swap_rate(jury: Jury, pictures: Tensor) -> PersonalRate:
    """Each person's pictures against those of every person of another taste, by the same judge."""
    names, people = jury.people.unseen, jury.people
    every = jury.scores(names, pictures)  # by judge: (U, P)
    won = {}
    for i, name in enumerate(names):
        others = [j for j, other in enumerate(names) if people.taste_of(other) != people.taste_of(name)]
        theirs = every[name][others]
        won[name] = outcomes(np.broadcast_to(every[name][i], theirs.shape), theirs, jury.sd[name])
    return personal_rate(won)


def curve_of(jury: Jury, pictures: Mapping[str, Tensor], votes: Sequence[int], kind: str = "votes") -> Curve:
    """Win rate over the base by the number of votes, on the prompts that all numbers have.

    ``kind`` is "votes" for those that come first, and "asked" for those that are asked for.
    """
    least = min(pictures[f"{kind}-{k}"].shape[1] for k in votes)
    won = {}
    for k in votes:
        own = jury.own(jury.people.unseen, pictures[f"{kind}-{k}"][:, :least])
        won[k] = {n: outcomes(s, jury.base[n][:least], jury.sd[n]) for n, s in own.items()}
    return vote_curve(won)


def said(jury: Jury, pictures: Mapping[str, Tensor]) -> Scores:
    """Scores of pictures whose prompt says what it can of a person's taste; the others' say nothing."""
    found = {}
    for name in jury.people.unseen:
        words = [t for t in jury.people.taste_of(name).split("+") if f"said-{t}" in pictures]
        shown = pictures[f"said-{words[0]}"] if words else pictures["population"]
        found[name] = jury.scores([name], shown)[name]
    return found


def tastes(jury: Jury, pictures: Tensor) -> Confusion:
    """Pictures made for people of each taste, by judges who have a taste and nothing of their own."""
    people = jury.people
    rows = [[i for i, n in enumerate(people.unseen) if people.taste_of(n) == t] for t in people.tastes]
    least = min(map(len, rows))
    shown = torch.stack([pictures[row[:least]] for row in rows])  # (A, n, P, ...)
    found, shape = _measured(shown), shown.shape[:3]
    asked = [parse(p) for p in jury.prompts] * (shape[0] * shape[1])
    judges = [Rater(name=t, weights=taste_weights(t)) for t in people.tastes]
    scores = [judge.utility(found, asked).view(shape[0], -1) for judge in judges]
    return confusion(torch.stack(scores, 1).double().numpy(), people.tastes)


def retrieval(jury: Jury, pictures: Tensor) -> Confusion:
    """Pictures made for each unseen person, by the judges of all of them."""
    every = jury.scores(jury.people.unseen, pictures)
    return confusion(np.stack([every[n] for n in every], 1), jury.people.unseen)


def obedience(jury: Jury, pictures: Mapping[str, Tensor], main: int) -> dict[str, float]:
    """Share of pictures that show what their prompt asks."""
    shown = {
        "base": pictures["base"][:, 0],
        "everybody": pictures["population"],
        "single": pictures[f"votes-{main}"],
    }
    return {name: float(_obeys(x, jury.prompts).mean()) for name, x in shown.items()} | {
        "base, all seeds": float(_obeys(pictures["base"].transpose(0, 1), jury.prompts).mean())
    }


def mixed(jury: Jury, name: str, pictures: Tensor) -> dict[str, Any]:
    """Mean of the axis on which two people differ most, for (C, S P, 3, H, W) pictures of their mixtures."""
    one, other = name.removeprefix("mixed-person-").split("-person-")
    weights = [taste_weights(jury.people.taste_of(f"person-{n}")) for n in (one, other)]
    axis = max(AXES, key=lambda a: abs(weights[0].get(a, 0.0) - weights[1].get(a, 0.0)))
    value = AXES[axis](_measured(pictures)).clamp(-2, 2).view(pictures.shape[:2]).mean(1).tolist()
    gaps = np.diff(value) * np.sign(weights[1].get(axis, 0.0) - weights[0].get(axis, 0.0))
    return {"axis": axis, "mean": value, "monotone": bool((gaps > 0).all())}


def by_taste(people: PopulationConfig, rate: PersonalRate) -> dict[str, float]:
    """Mean win rate of the people of each taste."""
    found: dict[str, list[float]] = {t: [] for t in people.tastes}
    for name, value in rate.by_person.items():
        found[people.taste_of(name)].append(value)
    return {taste: float(np.mean(values)) for taste, values in found.items() if values}


def _measured(pictures: Tensor) -> Measurements:
    return measure(pictures.reshape(-1, *pictures.shape[-3:]).float() / 255)


def _obeys(pictures: Tensor, prompts: Sequence[str]) -> Floats:
    asked = [parse(p) for p in prompts] * (pictures.shape[:-3].numel() // len(prompts))
    out: Floats = obeys(_measured(pictures), asked).all.double().numpy()
    return out


def rate_json(found: PersonalRate) -> dict[str, Any]:
    """A rate as JSON; who is worst served has no name there."""
    return {
        "value": found.value, "low": found.low, "high": found.high, "people": found.people,
        "worst": found.worst_rate, "below_half": found.below_half,
    }  # fmt: skip


def _matrix(found: Confusion) -> dict[str, Any]:
    return {
        "names": list(found.names), "table": found.table.tolist(), "margin": asdict(found.margin),
        "top1": asdict(found.top1), "top5": asdict(found.top5),
    }  # fmt: skip
