"""What ``votes check``, ``votes summary`` and ``votes explain`` print."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from diffalign.evaluate.stats import Interval
from diffalign.votes.check import Check, RaterCheck
from diffalign.votes.count import Counted
from diffalign.votes.dataset import USED, Dataset
from diffalign.votes.explain import Explanation
from diffalign.votes.summary import AspectSummary, Duel, Summary


def show_check(found: Check, console: Console) -> None:
    """Print a line per rater, and what is wrong with galleries and pictures."""
    _table(
        console,
        f"{found.votes} votes of {len(found.raters)} raters",
        ("rater", "votes", "left share", "p", "repeats agree", "anchors failed", "median ms", "remarks"),
        [_rater_cells(r) for r in found.raters],
    )
    for gallery, n in found.unknown_galleries.items():
        _say(console, f"{n} votes are of another gallery ({gallery[:12]}) than the folders given")
    for trouble, n in found.troubles.items():
        _say(console, f"{n} votes: {trouble}")
    if not found.pictures_checked:
        _say(
            console,
            f"{len(found.galleries)} galleries; pictures not checked: name their folders, --images RUN",
        )
    elif found.usable:
        _say(console, "all votes fit the pictures")


def show_summary(found: Summary, console: Console) -> None:
    """Print win rates, agreement and strengths of every aspect, and a line per rater."""
    _say(console, _count_line(found.counted))
    checks = {r.rater: r for r in found.raters}
    for aspect in found.aspects:
        rows = [_duel_cells("all", d) for d in aspect.duels]
        if len(aspect.by_rater) > 1:
            rows += [_duel_cells(r, d) for r, duels in aspect.by_rater.items() for d in duels]
        header = ("rater", "model", "against", "win rate [95 %]", "W/T/L", "both bad", "prompts")
        _table(console, f"{aspect.aspect}: {aspect.votes} votes", header, rows)
        _say(console, _agreement_line(aspect))
        _show_standings(aspect, console)
        for duel in aspect.duels:
            _say(console, human_line(duel, [checks[r] for r in aspect.by_rater]))


def human_line(duel: Duel, raters: Sequence[RaterCheck]) -> str:
    """The line of a report, e.g. ``human, 3 raters  win rate 0.588 [0.540, 0.636]  W/T/L 241/88/171 ...``."""
    left, decided = sum(r.left for r in raters), sum(r.decided for r in raters)
    agreed, repeats = sum(r.agreed for r in raters), sum(r.repeats for r in raters)
    people = f"{duel.raters} rater" + ("s" if duel.raters != 1 else "")
    return (
        f"human, {people}: {duel.model} against {duel.base}  win rate {interval(duel.rate)}  W/T/L "
        f"{duel.wins}/{duel.ties}/{duel.losses}, both bad {duel.both_bad}  "
        f"left share {_share(left, decided)}, repeats agree {_share(agreed, repeats)}"
    )


def show_explanation(found: Explanation, console: Console) -> None:
    """Print a weight per feature, largest first, and what to make of them."""
    who = f"user {found.user}" if found.user else f"{found.raters} raters"
    _table(
        console,
        f"{found.votes} votes of {who} over {found.prompts} prompts",
        ("feature", "weight of one s.d. [95 %]", "odds"),
        [(w.name, interval(w.weight), f"{math.exp(min(w.weight.value, 50)):.2f}") for w in found.ranked()],
    )
    _say(
        console,
        f"predicts {found.accuracy:.1%} of the decided votes it was fitted to; of pictures equal in all "
        f"features the left one is chosen with probability {found.left:.2f}",
    )
    for note in found.notes:
        _say(console, note)


def dataset_lines(found: Dataset) -> list[str]:
    """What was written and what was left out, a line each."""
    lines = [f"{found.records} {found.kind} in {found.path}", _count_line(found.counted)]
    if found.both_bad:
        what = "two dislikes each" if found.kind == "likes" else "nothing for pairs; --kind likes takes them"
        lines.append(f"{found.both_bad} votes of both bad: {what}")
    if found.dropped_ties:
        lines.append(f"{found.dropped_ties} ties dropped")
    lines.append(f"{found.used_prompts} prompts were voted on and leave the evaluation: {USED}")
    return lines


def interval(value: Interval) -> str:
    """An estimate with its interval."""
    return f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"


def _rater_cells(r: RaterCheck) -> tuple[str, ...]:
    return (
        r.rater,
        str(r.votes),
        _share(r.left, r.decided),
        f"{r.left_p:.2g}",
        f"{r.agreed}/{r.repeats}",
        f"{r.anchors_failed}/{r.anchors}",
        "-" if math.isnan(r.median_ms) else f"{r.median_ms:.0f}",
        "; ".join(r.remarks()) or "-",
    )


def _duel_cells(rater: str, d: Duel) -> tuple[str, ...]:
    counts = f"{d.wins}/{d.ties}/{d.losses}"
    return rater, d.model, d.base, interval(d.rate), counts, str(d.both_bad), str(d.prompts)


def _count_line(c: Counted) -> str:
    line = (
        f"{len(c.votes)} votes count; left out: {c.skips} skips, {c.repeats} repeats, {c.anchors} anchors, "
        f"{c.revised} votes given anew"
    )
    for rater, n in c.left_out.items():
        line += f", {n} votes of {rater} (failed over a third of the anchors)"
    return line


def _agreement_line(aspect: AspectSummary) -> str:
    found = aspect.agreement
    if not found.pairs:
        return "agreement: no pair was judged by two raters"
    return (
        f"agreement on {found.pairs} pairs seen by several: {found.percent:.1%} of answers, Krippendorff's "
        f"alpha {'-' if math.isnan(found.alpha) else f'{found.alpha:.2f}'}"
    )


def _show_standings(aspect: AspectSummary, console: Console) -> None:
    if aspect.standings:
        rows = [
            (m, f"{s.gain.value:+.2f} [{s.gain.low:+.2f}, {s.gain.high:+.2f}]", f"{s.rank_low}-{s.rank_high}")
            for m, s in zip(aspect.models, aspect.standings, strict=True)
        ]
        title = f"Bradley-Terry log-strength against {aspect.models[0]}, with a weak prior"
        _table(console, title, ("model", "strength [95 %]", "rank"), rows)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2f}" if whole else "-"


def _table(console: Console, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(title=Text(title), title_justify="left")
    for name in header:
        table.add_column(name)
    for cells in rows:
        table.add_row(*map(Text, cells))  # Text, because a name with brackets would be read as markup
    console.print(table)


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
