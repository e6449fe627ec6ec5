"""The page of a study of people: docs/people_study.md, its JSON and its plots."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffalign.atomic import write_bytes
from diffalign.evaluate.stats import Interval
from diffalign.personalize.metrics import Confusion, Curve, PersonalRate
from diffalign.personalize.plots import plot_confusion, plot_curves

TARGETS = {
    "unseen": 0.76,
    "unseen, over the model for everybody": 0.65,
    "unseen, own against other tastes' pictures": 0.75,
}
"""What the figures of unseen people, known by four votes, must reach."""
POINTS = 0.03
"""How much obedience may fall."""


def write_page(found: Mapping[str, Any], out: Path) -> None:
    """Write page, JSON and plots beside one another; ``out`` is the page without its ending.

    Args:
        found: of each pipeline what ``study_figures.figures`` gives, with ``cost`` and ``population``.
        out: for example docs/people_study.
    """
    write_bytes(out.with_suffix(".json"), (json.dumps(found, indent=1) + "\n").encode())
    for name, of in found.items():
        plot_confusion(as_confusion(of["tastes"]), Path(f"{out}_{name}_tastes.png"))
    curves = {name: as_curve(of["curve"]) for name, of in found.items()}
    curves |= {f"{name}, asked": as_curve(of["asked"]) for name, of in found.items() if "asked" in of}
    if curves:
        plot_curves(curves, Path(f"{out}_votes.png"))
    write_bytes(out.with_suffix(".md"), page(found, out.name).encode())


def page(found: Mapping[str, Any], name: str) -> str:
    """The page as markdown; plots lie beside it and begin with its ``name``."""
    parts = [INTRODUCTION, *(_pipeline(title, of, name) for title, of in found.items())]
    if found:
        parts.append(f"## Number of votes\n\n![win rate by number of votes]({name}_votes.png)\n")
    return "\n".join(parts)


INTRODUCTION = """# People: does it help

Written by `training/people.py`; settings are in `training/people.yaml`, words in [people.md](people.md).

Simulated people, each with the weights of one of eight tastes (four pairs of opposites: two axes and sums
of both) and a part of their own, vote with noise on pictures of the base. The last of them are held out:
nothing is trained on their votes, and what is known of them is k votes on pictures that nobody else saw:
those that come first, or those that `personalize.ask` would ask for after the answers so far.
The encoder of votes reads what the oracle measures of a picture (`diffalign.world.measured`), for the
towers of the shipped scorer hardly see shade; so the figures are of encoder, layers and training, and not
of a tower.

Every figure is a mean over people, with an interval that resamples people (and not prompts, of which there
are few). The judge is each person's own utility without noise. Prompts are held out from training, leave
all axes open, and are the same for all, as are the seeds. A win is a gain above 0.25 s.d. of the base by
that judge; ties count half. Prompts with a taste written into them say a size, or a warm or cool
background; no word says a shade, so that who likes a shade alone gets the model for everybody there.

Tastes come in opposite pairs, so that they cancel in what the model for everybody learns: it hardly moves.
Settings were chosen in three trials of each pipeline, on three training prompts and sixteen of the unseen
people. There obedience fell by half and more on pink stars, and on the MMDiT on red circles too; the
prompts below are easier. Afterwards eight more settings of the MMDiT's second stage were tried on fourteen
training prompts and the same people: 400 to 600 steps, batches of 32, beta 200, three times the pictures,
`own_other`, an SFT term, other timesteps; most with a guidance of 2 or 3 for people, too. None won clearly
more; in the usual guidance all but beta 200, which won less, lost more obedience, and a weight of 2 kept
obedience and won a little less. In the figures asked for below, 500 steps lost 13 points of obedience (0.70
over the base, 0.69 against other tastes' pictures), and at weight 2 gained 4 points (0.74 over the base, 0.75
over the model for everybody, 0.71 against other tastes' pictures). So the first choice stands. On the MMDiT
shade and warmth go together: pictures made for dark tastes please cool judges, and those for light tastes
warm ones (see its matrix), which costs most where a taste asks for the other way round.
"""


def _pipeline(name: str, of: Mapping[str, Any], stem: str) -> str:
    tastes = f"![pictures made for each taste, by judges of each taste]({stem}_{name}_tastes.png)"
    amounts = ", ".join(f"{a:g}" for a in of["amounts"])
    lines = [
        f"## {name}", "", _about(of), "",
        "| figure | mean over people [95 %] | people | worst | losing | asked for |",
        "|---|---|---|---|---|---|",
        *(_row(title, rate) for title, rate in of["rates"].items()), "",
        _obedience(of["obedience"]), "", *_wide(of.get("all_prompts")),
        *_curves(of), "",
        _gain(of["curve"]["gain"]), "", _specific(of), "",
        "Win rate by taste: " + ", ".join(f"{t} {v:.2f}" for t, v in of["by_taste"].items()) + ".", "",
        tastes, "",
        f"Between two people of opposite tastes, mixtures at shares {amounts} of the second:", "",
        *(_mixed(m) for m in of["interpolation"].values()), "",
    ]  # fmt: skip
    return "\n".join(lines)


def _curves(of: Mapping[str, Any]) -> list[str]:
    """Rates by the number of votes, beside those of votes that were asked for, where these were measured."""
    kinds = {"win rate over the base [95 %]": of["curve"]}
    if "asked" in of:
        kinds["the same, pairs asked for"] = of["asked"]
    columns = zip(of["curve"]["votes"], *(found["rates"] for found in kinds.values()), strict=True)
    return [
        f"| votes | {' | '.join(kinds)} |",
        "|---" * (1 + len(kinds)) + "|",
        *(f"| {k} | {' | '.join(map(_interval, rates))} |" for k, *rates in columns),
    ]


def _about(of: Mapping[str, Any]) -> str:
    p = of["population"]
    return (
        f"{p['people']} people of the tastes {', '.join(p['tastes'])}; {p['held_out']} of them held out, "
        f"{p['votes']} votes of each seen one, noise {p['temperature']:g}, own part {p['individual']:g}; "
        f"{of['pictures']} prompts. {_guidance(of.get('user_guidance'))}{_cost(of['cost'])}"
    )


def _guidance(weight: float | None) -> str:
    return "" if weight is None else f"People have guidance of their own, of weight {weight:g}. "


def _wide(found: Mapping[str, Any] | None) -> list[str]:
    """The main figures again, on all prompts that are held out."""
    if found is None:
        return []
    return [
        f"On all {found['prompts']} held-out prompts:", "",
        "| figure | mean over people [95 %] | people | worst | losing | asked for |",
        "|---|---|---|---|---|---|",
        *(_row(title, rate) for title, rate in found["rates"].items()), "",
        _obedience(found["obedience"]), "",
    ]  # fmt: skip


def _gain(found: Mapping[str, float]) -> str:
    return (
        f"The most votes less the fewest: {found['value']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]."
    )


def _specific(of: Mapping[str, Any]) -> str:
    tastes, people = of["tastes"], of["people"]
    return (
        f"The judge of a taste likes the pictures made for it best for {_share(tastes['top1'])} of the "
        f"tastes (chance {1 / len(tastes['names']):.0%}); own less others' {_interval(tastes['margin'])} "
        f"s.d. Among pictures for all {len(people['names'])} people, one's own are best for "
        f"{_share(people['top1'])} (chance {1 / len(people['names']):.1%}) and among the best five for "
        f"{_share(people['top5'])}; people of one taste want nearly the same."
    )


def _row(title: str, rate: Mapping[str, Any]) -> str:
    target = (
        f">= {TARGETS[title]:g}: {'met' if rate['value'] >= TARGETS[title] else 'missed'}"
        if title in TARGETS
        else ""
    )
    below = f"{rate['below_half']:.0%}"
    return f"| {title} | {_interval(rate)} | {rate['people']} | {rate['worst']:.2f} | {below} | {target} |"


def _obedience(found: Mapping[str, float]) -> str:
    change = found["single"] - found["base, all seeds"]
    verdict = "met" if change >= -POINTS else "missed"
    parts = ", ".join(f"{name} {value:.1%}" for name, value in found.items())
    points = f"{100 * change:+.1f} points (at most 3 lost: {verdict})"
    return f"Obedience: {parts}; single people less the base of all seeds: {points}."


def _mixed(found: Mapping[str, Any]) -> str:
    values = ", ".join(f"{v:+.2f}" for v in found["mean"])
    return f"* {found['axis']}: {values}: {'monotone' if found['monotone'] else 'not monotone'}"


def _cost(found: Mapping[str, float]) -> str:
    minutes = ", ".join(f"{name} {seconds / 60:.1f}" for name, seconds in found.items())
    return f"Training took CPU minutes: {minutes} (asked for: 15 minutes on 2 cores, which are 30)."


def _interval(found: Mapping[str, float]) -> str:
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def _share(found: Mapping[str, float]) -> str:
    return f"{found['value']:.0%}"


def as_confusion(found: Mapping[str, Any]) -> Confusion:
    """A confusion matrix from its JSON."""
    import numpy as np

    return Confusion(
        names=tuple(found["names"]), table=np.array(found["table"]), margin=Interval(**found["margin"]),
        top1=Interval(**found["top1"]), top5=Interval(**found["top5"]), ranks={},
    )  # fmt: skip


def as_curve(found: Mapping[str, Any]) -> Curve:
    """A curve from its JSON."""
    rates = tuple(
        PersonalRate(
            value=r["value"], low=r["low"], high=r["high"], people=r["people"],
            by_person={"worst": r["worst"]}, worst="worst", below_half=r["below_half"],
        )
        for r in found["rates"]
    )  # fmt: skip
    return Curve(votes=tuple(found["votes"]), rates=rates, gain=Interval(**found["gain"]))
