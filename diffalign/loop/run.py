"""``diffalign loop``: round after round, each step found by what it left behind."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from diffalign.evaluate.report import load_report, write_atomic
from diffalign.evaluate.results import NAME, read_rows
from diffalign.loop.options import LoopOptions, RoundFolder, claim
from diffalign.loop.simulated import simulated_votes
from diffalign.votes.check import check, refuse_unusable
from diffalign.votes.choose import candidates
from diffalign.votes.count import counted
from diffalign.votes.dataset import DatasetOptions, to_dataset
from diffalign.votes.pictures import find_pictures
from diffalign.votes.rows import read_votes, to_lines

Say = Callable[[str], None]
STATE = "rounds.json"
PICTURE = "rounds.png"


@dataclass(frozen=True, kw_only=True)
class RoundResult:
    """What a round came to."""

    round: int
    votes: int
    """Votes that count."""
    records: int
    """Preferences that they became."""
    win_rate: float | None
    """Against the untouched base, on held-out prompts; None where no judge was named."""
    low: float | None = None
    high: float | None = None
    gain_sd: float | None = None
    obedience: float | None = None
    obedience_base: float | None = None
    cpu_seconds: float | None = None
    """Processor time of the round, over all cores; None where it was made in several sittings."""


@dataclass(frozen=True, kw_only=True)
class LoopResult:
    """How far a loop came."""

    folder: Path
    rounds: tuple[RoundResult, ...]
    waiting: str
    """What a person has to do before it goes on; empty where it is through."""


def run_loop(options: LoopOptions, rounds: int, output: Path, say: Say = lambda line: None) -> LoopResult:
    """Run a loop, or go on with one.

    Every step leaves files that are written last of all it does, and is skipped where they are there: the
    same call again goes on after a kill, and with more rounds after the last one. Files of votes are only
    read.

    Args:
        options: what it does; the same each time.
        rounds: how many rounds, at least 1.
        output: folder of the loop.
        say: shows a line.

    Raises:
        LoopError: the folder was begun otherwise, or the options do not fit.
        VoteError: votes that do not fit their pictures, or none that count.
    """
    output.mkdir(parents=True, exist_ok=True)
    claim(output, options)
    before: RoundFolder | None = None
    old = _old_seconds(output)
    results: list[RoundResult] = []
    for number in range(1, rounds + 1):
        folder, start = RoundFolder(root=output / f"round-{number}"), time.process_time()
        fresh = not folder.root.exists()
        waiting = play_round(options, number, folder, before, output / "cache", say)
        if waiting:
            return LoopResult(folder=output, rounds=tuple(results), waiting=waiting)
        seconds = time.process_time() - start if fresh else old.get(number)
        results.append(round_result(number, folder, seconds))
        _write_state(output, results)
        before = folder
    return LoopResult(folder=output, rounds=tuple(results), waiting="")


def play_round(
    options: LoopOptions, number: int, folder: RoundFolder, before: RoundFolder | None, cache: Path, say: Say
) -> str:
    """Make what a round lacks; returns what a person has to do first, empty where it is through."""
    from diffalign.loop.train import is_trained, train_round

    if is_trained(options, folder):
        return ""
    if not (folder.results / NAME).is_file():
        _draw(options, number, folder, before, say)
    if not folder.gallery.is_file():
        _write_gallery(folder)
    if not folder.ballots() and options.rater == "human":
        return instructions(folder)
    if not folder.ballots():
        _simulate(options, number, folder)
    if not folder.data.is_dir():
        _make_data(options, number, folder, say)
    train_round(options, folder, before, cache)
    return ""


def instructions(folder: RoundFolder) -> str:
    """What a person does before the loop goes on."""
    return (
        f"open {folder.gallery} in a browser and vote, blind; export the votes into the folder "
        f"{folder.votes} (any names that end with .jsonl); then give the same command again. Several raters "
        f"at once: diffalign gallery serve {folder.results} --votes {folder.root / 'votes.sqlite'}, and then "
        f"the same with --export {folder.votes / 'votes.jsonl'}"
    )


def round_result(number: int, folder: RoundFolder, seconds: float | None) -> RoundResult:
    """What a finished round came to, from its files."""
    votes = counted(read_votes(folder.vote_files())).votes
    records = len((folder.data / "origin.jsonl").read_text(encoding="utf-8").splitlines())
    file = folder.run / "report.json"
    if not file.is_file():
        return RoundResult(
            round=number, votes=len(votes), records=records, win_rate=None, cpu_seconds=seconds
        )
    report = load_report(file)
    row = report["comparisons"][0]
    return RoundResult(
        round=number, votes=len(votes), records=records, win_rate=row["win_rate"], low=row["ci_low"],
        high=row["ci_high"], gain_sd=row["mean_gain_sd"], obedience=report["obedience"].get("model"),
        obedience_base=report["obedience"].get("base"), cpu_seconds=seconds,
    )  # fmt: skip


def _draw(
    options: LoopOptions, number: int, folder: RoundFolder, before: RoundFolder | None, say: Say
) -> None:
    from diffalign.loop.draw import draw_round
    from diffalign.loop.train import open_policy, sampling_of

    config, policy = open_policy(options, before)
    implicit = None if before is None else before.run
    draw_round(policy, options, number, folder, sampling_of(config), implicit, say)


def _write_gallery(folder: RoundFolder) -> None:
    from diffalign.gallery.write import write_gallery_of

    write_gallery_of([folder.results], folder.gallery, title=folder.root.name, overwrite=True)
    folder.votes.mkdir(exist_ok=True)


def _simulate(options: LoopOptions, number: int, folder: RoundFolder) -> None:
    from diffalign.loop.draw import read_pictures
    from diffalign.world.raters import named_rater

    rows = read_rows(folder.results)
    rater = named_rater(options.taste)
    pictures = read_pictures(rows, folder.results)
    votes = simulated_votes(rater, candidates(rows), pictures, rows, seed=options.seed + number)
    write_atomic(folder.votes / "simulated.jsonl", to_lines(votes))


def _make_data(options: LoopOptions, number: int, folder: RoundFolder, say: Say) -> None:
    """Check the votes and turn them into preferences."""
    votes, pictures = read_votes(folder.vote_files()), find_pictures(folder.pictures())
    found = check(votes, pictures)
    refuse_unusable(found)
    for rater in found.raters:
        for remark in rater.remarks():
            say(f"round {number}     {rater.rater}: {remark}")
    chosen = DatasetOptions(kind="likes" if options.objective == "kto" else "pairs")
    made = to_dataset(votes, pictures, folder.data, chosen)
    say(f"round {number}     {len(made.counted.votes)} votes count, {made.records} {made.kind} to train on")


def _old_seconds(output: Path) -> dict[int, float | None]:
    """Processor time of the rounds that earlier calls made."""
    file = output / STATE
    rows = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    return {row["round"]: row.get("cpu_seconds") for row in rows}


def _write_state(output: Path, results: list[RoundResult]) -> None:
    from diffalign.loop.picture import draw_rounds

    write_atomic(output / STATE, json.dumps([asdict(r) for r in results], indent=1) + "\n")
    if results[-1].win_rate is not None:
        draw_rounds(results, output / PICTURE)
