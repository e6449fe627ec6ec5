"""docs/directions.md, directions.json and the picture of the study of directions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from diffalign.evaluate.stats import Comparison, Interval, base_sd, compare
from diffalign.personalize.direction_study import (
    BASE,
    NO_DIRECTION,
    OBEDIENCE,
    Scores,
    StudyOptions,
)
from diffalign.train.run import write_text

TEXT = """# Directions: one model for every mixture of rewards

Written by `training/directions.py`.

{images} pictures of the base ({model}) are compared in pairs by two scorers, {a} and {b}. One run trains
with directions over both: each pair draws a direction by its seed and is labelled for it. Only {among} are
drawn. It trains the encoder of directions and its layers alone, for a LoRA beside them would learn what all
directions share. Two more runs train an ordinary LoRA of rank 16 on the labels of one scorer each: same
pairs, objective (DPO), {steps} steps of {batch} pairs; learning rates are {rate:g} for the LoRAs,
{encoder_rate:g} for the encoder and {branch_rate:g} for its layers. (Before, in 120 steps at 0.002 and with
a LoRA beside them, directions were monotone on one axis alone; these settings followed from that.) Pictures
are of {prompts} held-out prompts with {seeds} seeds each; gains are over the base with the same prompt and
seed, in its seed-to-seed s.d.; 95 % intervals resample prompts; win rates count gains within 0.25 s.d. as
ties. The scorers are exact and are those that were trained on: this shows whether directions steer, not
whether the scorers are right. Directions have a guidance of their own (`--user-guidance {guidance:g}`: the
strength that was trained), beside 4 for the prompt.

![gains of both scorers](directions.png)

{table}

* From {a} to {b}: gains of {a} {first} (win rates {first_won}), gains of {b} {second} (win rates
  {second_won}). *3:1* and *1:3* were never drawn in training. A picture that shows nothing of its prompt
  scores low, so that mean gains fall with obedience; win rates know better how many pictures follow.
* Against one model per reward: the directed model at 1:0 gains {gap_a} s.d. of {a} over the model that was
  trained on it alone, and at 0:1 {gap_b} s.d. of {b} (paired by prompt and seed; below 0, one for all
  costs something).
* *1:-1* and *-1:1* lie beyond what was drawn: nothing holds the model there.

```
diffalign generate RUN --direction {a}=3,{b}=1 --user-guidance {guidance:g} --prompt "a red circle"
```
"""
HEAD = ("direction", "drawn", "gain of {a}", "win rate", "gain of {b}", "win rate", "obedience")


def write_page(options: StudyOptions, scores: Scores, folder: Path) -> None:
    """Write directions.md, .json and .png into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {axis: compared(scores, axis) for axis in options.axes}
    write_text(folder / "directions.md", page(options, scores))
    content = {
        axis: {name: _figures(one) for name, one in by_name.items()} for axis, by_name in found.items()
    }
    obeyed = {name: float(by[OBEDIENCE].mean()) for name, by in scores.items()}
    text = json.dumps({"gains": content, "obedience": obeyed}, indent=1)
    write_text(folder / "directions.json", text + "\n")
    draw(options, scores, folder / "directions.png")


def compared(scores: Scores, axis: str) -> dict[str, Comparison]:
    """Every model against the base by one scorer."""
    base = scores[BASE][axis]
    return {name: compare(base, by[axis], sd=base_sd(base)) for name, by in scores.items() if name != BASE}


def page(options: StudyOptions, scores: Scores) -> str:
    """The page, as Markdown."""
    a, b = options.axes
    first, second = (compared(scores, axis) for axis in options.axes)
    falling, rising = ([by[n].mean_gain_sd.value for n in options.between] for by in (first, second))
    lost, won = ([by[n].win_rate.value for n in options.between] for by in (first, second))
    named = ("1:0", "1:1", "0:1")
    return TEXT.format(
        a=a, b=b, among=", ".join(f"*{n}*" for n in named), model=f"`{options.model}`", images=options.images,
        steps=options.steps, batch=options.batch, prompts=options.prompts, seeds=options.seeds,
        guidance=options.user_guidance, rate=options.rate, encoder_rate=options.encoder_rate,
        branch_rate=options.branch_rate,
        table=_table(options, scores), first=_course(falling[::-1], "fall"), second=_course(rising, "rise"),
        first_won=_course(lost[::-1], "fall"), second_won=_course(won, "rise"),
        gap_a=_shown(against(scores, a, "1:0")), gap_b=_shown(against(scores, b, "0:1")),
    )  # fmt: skip


def against(scores: Scores, axis: str, name: str) -> Interval:
    """Gain of the directed model over the one of a single reward, in s.d. of the base."""
    sd = base_sd(scores[BASE][axis])
    return compare(scores[axis][axis], scores[name][axis], sd=sd).mean_gain_sd


def draw(options: StudyOptions, scores: Scores, file: Path) -> None:
    """Both gains of every model: the path of directions as a line, the models of one reward as points."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    xs, ys = ({n: c.mean_gain_sd.value for n, c in compared(scores, axis).items()} for axis in options.axes)
    path = options.between
    axes.axhline(0, color="0.85", linewidth=0.8)
    axes.axvline(0, color="0.85", linewidth=0.8)
    axes.plot([xs[n] for n in path], [ys[n] for n in path], "-", color="tab:blue", linewidth=1)
    _points(axes, xs, ys, [n for n in path if n in ("1:0", "1:1", "0:1")], "o", "drawn in training")
    _points(axes, xs, ys, [n for n in options.path if n not in ("1:0", "1:1", "0:1")], "D", "never drawn")
    _points(axes, xs, ys, list(options.axes), "s", "one model per reward")
    _points(axes, xs, ys, [NO_DIRECTION], "x", NO_DIRECTION)
    axes.set(xlabel=f"gain of {options.axes[0]} in s.d.", ylabel=f"gain of {options.axes[1]} in s.d.")
    axes.legend(fontsize=8)
    figure.savefig(file, dpi=110)


def _points(
    axes: Any, xs: dict[str, float], ys: dict[str, float], names: Sequence[str], marker: str, label: str
) -> None:
    axes.scatter([xs[n] for n in names], [ys[n] for n in names], marker=marker, s=30, label=label)
    for name in names:
        axes.annotate(name, (xs[name], ys[name]), xytext=(5, 3), textcoords="offset points", fontsize=7)


def _table(options: StudyOptions, scores: Scores) -> str:
    first, second = (compared(scores, axis) for axis in options.axes)
    drawn = {name: "yes" if name in ("1:0", "1:1", "0:1") else "no" for name in options.path}
    head = [cell.format(a=options.axes[0], b=options.axes[1]) for cell in HEAD]
    lines = [head, ["---"] * len(head), [BASE, "", "0", "", "0", "", _obeyed(scores, BASE)]]
    for name in first:
        called = f"LoRA of {name} alone" if name in options.axes else name
        cells = [
            cell for c in (first[name], second[name]) for cell in (_shown(c.mean_gain_sd), _rate(c.win_rate))
        ]
        lines.append([called, drawn.get(name, ""), *cells, _obeyed(scores, name)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _course(values: Sequence[float], verb: str) -> str:
    """Whether values rise from each to the next, as a sentence with ``verb``."""
    steps = [b > a for a, b in pairwise(values)]
    return f"{verb} at every step" if all(steps) else f"{verb} at {sum(steps)} of {len(steps)} steps"


def _shown(value: Interval) -> str:
    return f"{value.value:+.2f} [{value.low:+.2f}, {value.high:+.2f}]"


def _rate(value: Interval) -> str:
    return f"{value.value:.2f} [{value.low:.2f}, {value.high:.2f}]"


def _obeyed(scores: Scores, name: str) -> str:
    return f"{100 * scores[name][OBEDIENCE].mean():.0f} %"


def _figures(found: Comparison) -> dict[str, float]:
    gain, won = found.mean_gain_sd, found.win_rate
    return {
        "gain": gain.value, "low": gain.low, "high": gain.high,
        "win_rate": won.value, "win_rate_low": won.low, "win_rate_high": won.high,
    }  # fmt: skip
