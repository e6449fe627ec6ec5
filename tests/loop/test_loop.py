"""The loop: what a round leaves, how it goes on, how people vote in it, and that no vote is lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from diffalign.data.readers import read
from diffalign.evaluate.results import read_rows
from diffalign.loop import draw as drawing
from diffalign.loop import run as running
from diffalign.loop import train as training
from diffalign.loop.draw import draw_round, read_pictures, round_prompts
from diffalign.loop.options import LoopError, LoopOptions, RoundFolder, claim
from diffalign.loop.picture import markdown
from diffalign.loop.run import run_loop
from diffalign.loop.simulated import look, simulated_votes
from diffalign.policy.export import LORA_FILE
from diffalign.votes.check import check
from diffalign.votes.choose import candidates
from diffalign.votes.count import counted
from diffalign.votes.dataset import DatasetOptions, to_dataset
from diffalign.votes.pictures import find_pictures
from diffalign.votes.rows import read_votes, to_lines
from diffalign.world.grammar import parse
from diffalign.world.raters import named_rater
from diffalign.world.shapes import draw as render

START = datetime(2026, 11, 21, tzinfo=UTC)


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are rendered, not generated."""

    def generate(policy: object, prompts: list[str], seeds: list[int], sampling: object) -> Tensor:
        pictures = [render([parse(p) for p in prompts], np.random.default_rng([s, 9])) for s in seeds]
        return (torch.stack(pictures, 1) * 255).round().to(torch.uint8)

    monkeypatch.setattr(drawing, "generate", generate)


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch, rendered: None) -> list[str]:
    """Rounds are drawn without a model, and training only leaves its weights; returns what was trained on."""
    trained: list[str] = []

    def drawn(
        options: LoopOptions, number: int, folder: RoundFolder, before: object, say: Callable[..., None]
    ):
        draw_round(None, options, number, folder, None, None, say)

    def train(options: LoopOptions, folder: RoundFolder, before: RoundFolder | None, cache: Path) -> None:
        trained.append(f"{folder.root.name} after {before.root.name if before else 'the base'}")
        (folder.run / "export").mkdir(parents=True)
        (folder.run / "export" / LORA_FILE).write_bytes(b"")

    def gallery(folder: RoundFolder) -> None:
        folder.gallery.write_text("page")
        folder.votes.mkdir(exist_ok=True)

    monkeypatch.setattr(running, "_draw", drawn)
    monkeypatch.setattr(running, "_write_gallery", gallery)
    monkeypatch.setattr(training, "train_round", train)
    return trained


def drawn_round(tmp_path: Path, **options: object) -> tuple[RoundFolder, LoopOptions]:
    folder, chosen = RoundFolder(root=tmp_path / "round-1"), LoopOptions(**options)
    draw_round(None, chosen, 1, folder, None, None, lambda line: None)
    return folder, chosen


def test_a_round_s_pairs_are_results_that_a_gallery_takes(rendered: None, tmp_path: Path) -> None:
    folder, _ = drawn_round(tmp_path, votes=6)
    rows = read_rows(folder.results)
    assert len({r.prompt for r in rows}) == 6
    assert {r.model for r in rows} == {"round-1-x", "round-1-y"}
    assert {r.seed for r in rows} == {0}
    assert set(read_pictures(rows, folder.results)) == {r.sha256 for r in rows}


def test_rounds_take_new_prompts_and_begin_again_after_the_last() -> None:
    options = LoopOptions(votes=100)
    every = drawing.training_prompts(options)
    rounds = [round_prompts(options, n) for n in (1, 2, 3)]
    assert rounds[0] + rounds[1] == every[:200]
    assert rounds[2][: len(every) - 200] == every[200:300]
    with pytest.raises(LoopError, match="lower --votes"):
        round_prompts(LoopOptions(votes=5000), 1)


@pytest.mark.slow
def test_a_simulated_person_votes_by_taste_with_repeats_and_anchors(rendered: None, tmp_path: Path) -> None:
    folder, _ = drawn_round(tmp_path, votes=60)
    rows = read_rows(folder.results)
    pairs, pictures = candidates(rows), read_pictures(rows, folder.results)
    rater = named_rater("large", temperature=0.01)
    votes = simulated_votes(rater, pairs, pictures, rows, seed=1, start=START)
    seen = look(rater, pairs, pictures)
    first = [v for v in votes if v.repeat_of is None and v.anchor is None]
    wanted = {True: "a", False: "b"}
    for vote, a, b in zip(first, seen.first.tolist(), seen.second.tolist(), strict=True):
        assert vote.choice == (wanted[a > b] if abs(a - b) >= rater.tie_below else "tie")
    (found,) = check(votes, find_pictures([folder.results])).raters
    assert found.repeats > 2
    assert found.self_agreement == 1
    assert (found.anchors > 0, found.anchors_failed, found.fast) == (True, 0, 0)
    assert 1000 < found.median_ms < 4000
    assert 0.3 < found.left_share < 0.7
    assert len(counted(votes).votes) == 60
    assert check(votes, find_pictures([folder.results])).usable


def test_two_disobedient_pictures_are_both_bad(rendered: None, tmp_path: Path) -> None:
    folder, _ = drawn_round(tmp_path, votes=4)
    rows = read_rows(folder.results)
    grey = dict.fromkeys((r.sha256 for r in rows), torch.full((3, 64, 64), 128, dtype=torch.uint8))
    votes = simulated_votes(named_rater("large"), candidates(rows), grey, rows, seed=0)
    assert {v.choice for v in votes if v.anchor is None} == {"both_bad"}


def test_what_scorers_are_sure_of_they_settle(rendered: None, tmp_path: Path) -> None:
    folder, options = drawn_round(
        tmp_path, votes=10, candidates=40, choose="routed", scorers=("shapes-large",)
    )
    asked, settled = read_rows(folder.results), read_rows(folder.settled)
    votes = read_votes([folder.settled / "votes.jsonl"])
    assert len(asked) == 20
    assert len(settled) == 2 * len(votes) > 0
    assert not {r.prompt for r in asked} & {r.prompt for r in settled}
    scores = {r.sha256: r.scores["shapes-large"] for r in settled}
    assert all((scores[v.a.sha256] > scores[v.b.sha256]) == (v.choice == "a") for v in votes)
    human = simulated_votes(
        named_rater(options.taste), candidates(asked), read_pictures(asked, folder.results), asked, seed=0
    )
    found = to_dataset(
        [*votes, *human], find_pictures(folder.pictures()), tmp_path / "data", DatasetOptions()
    )
    assert {r.rater for r in read(found.path)} == {"scorers", "simulated-large"}


def test_a_person_s_votes_are_waited_for_and_never_changed(untrained: list[str], tmp_path: Path) -> None:
    options, output = LoopOptions(rater="human", votes=5), tmp_path / "loop"
    found = run_loop(options, 2, output)
    folder = RoundFolder(root=output / "round-1")
    assert str(folder.gallery) in found.waiting
    assert str(folder.votes) in found.waiting
    assert run_loop(options, 2, output).waiting == found.waiting
    rows = read_rows(folder.results)
    votes = simulated_votes(
        named_rater("large"), candidates(rows), read_pictures(rows, folder.results), rows, seed=0
    )
    text = to_lines(votes)
    (folder.votes / "anna.jsonl").write_text(text)
    found = run_loop(options, 2, output)
    assert (untrained, [r.round for r in found.rounds]) == (["round-1 after the base"], [1])
    assert "round-2" in found.waiting
    assert (folder.votes / "anna.jsonl").read_text() == text
    assert found.rounds[0].win_rate is None
    assert len(read(folder.data)) == found.rounds[0].records


def test_a_loop_goes_on_where_it_was_cut_short(untrained: list[str], tmp_path: Path) -> None:
    options, output = LoopOptions(votes=8, evaluate_prompts=0), tmp_path / "loop"
    run_loop(options, 1, output)
    votes = (output / "round-1" / "votes" / "simulated.jsonl").read_bytes()
    drawn = (output / "round-1" / "results" / "results.jsonl").stat().st_mtime_ns
    for lost in (output / "round-1" / "run" / "export").iterdir():
        lost.unlink()  # killed while training
    (output / "round-1" / "run" / "export").rmdir()
    run_loop(options, 3, output)
    assert untrained[1:] == ["round-1 after the base", "round-2 after round-1", "round-3 after round-2"]
    assert (output / "round-1" / "votes" / "simulated.jsonl").read_bytes() == votes
    assert (output / "round-1" / "results" / "results.jsonl").stat().st_mtime_ns == drawn
    rows = json.loads((output / "rounds.json").read_text())
    assert [r["round"] for r in rows] == [1, 2, 3]
    assert rows[0]["cpu_seconds"] is not None
    with pytest.raises(LoopError, match="begun with votes 8, not 9"):
        run_loop(LoopOptions(votes=9, evaluate_prompts=0), 3, output)


def test_people_are_asked_also_where_scorers_settle_some(untrained: list[str], tmp_path: Path) -> None:
    options = LoopOptions(
        votes=8, candidates=30, choose="routed", scorers=("shapes-large",), evaluate_prompts=0
    )
    (found,) = run_loop(options, 1, tmp_path / "loop").rounds
    folder = RoundFolder(root=tmp_path / "loop" / "round-1")
    assert [f.name for f in folder.vote_files()] == ["simulated.jsonl", "votes.jsonl"]
    settled = len(read_votes([folder.settled / "votes.jsonl"]))
    assert (found.votes, settled > 0) == (8 + settled, True)


def test_damaged_votes_stop_the_loop_before_training(untrained: list[str], tmp_path: Path) -> None:
    options, output = LoopOptions(rater="human", votes=5), tmp_path / "loop"
    run_loop(options, 1, output)
    (output / "round-1" / "votes" / "x.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"x\.jsonl:1"):
        run_loop(options, 1, output)
    assert untrained == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "ppo"}, "objective is 'ppo'; it must be dpo or kto"),
        ({"votes": 1}, "votes is 1; it must be at least 2"),
        ({"votes": 9, "candidates": 8}, "fewer than the 9 votes"),
        ({"choose": "entropy"}, "needs scorers"),
        ({"pipeline": "other"}, "name a --recipe"),
        ({"pipeline": "other", "recipe": "sd15-dpo-lora", "rater": "human"}, "training --prompts"),
        ({"prompts": "p.txt"}, "knows the shapes world only"),
        ({"taste": "huge"}, "no taste 'huge'"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoopOptions(**options)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(LoopError, match="no loop"):
        claim(tmp_path, LoopOptions())
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


RECIPE = """
policy: {model: samples/shapes/unet, adapter: {rank: 2}}
objective: {name: dpo, beta: 3000}
data: {resolution: 64, prompt_dropout: 0.0}
optim: {learning_rate: 1.0e-3}
batch: 2
evaluate: {steps: 4}
"""


@pytest.mark.slow
def test_a_round_of_likes_in_earnest(tmp_path: Path) -> None:
    """KTO on likes and dislikes, with its own batch and noise, and nothing to evaluate."""
    (tmp_path / "r.yaml").write_text(RECIPE)
    options = LoopOptions(
        recipe=str(tmp_path / "r.yaml"), votes=20, steps=1, evaluate_prompts=0, objective="kto"
    )
    (found,) = run_loop(options, 1, tmp_path / "loop").rounds
    assert (found.votes, found.win_rate) == (20, None)
    records = read(tmp_path / "loop" / "round-1" / "data")
    assert {r.kind for r in records} == {"labels"}
    assert len(records) == found.records == 40
    config = (tmp_path / "loop" / "round-1" / "run" / "config.yaml").read_text()
    assert "name: kto" in config
    assert "name: independent_noise" in config
    assert (tmp_path / "loop" / "round-1" / "run" / "export" / LORA_FILE).is_file()


@pytest.mark.slow
def test_two_rounds_in_earnest(tmp_path: Path) -> None:
    """Both rounds are drawn, voted, trained and evaluated; the second starts from the first one's adapter."""
    (tmp_path / "r.yaml").write_text(RECIPE)
    options = LoopOptions(
        recipe=str(tmp_path / "r.yaml"), votes=6, steps=2, evaluate_prompts=2, seeds=2, objective="dpo"
    )
    found = run_loop(options, 2, tmp_path / "loop")
    assert [r.round for r in found.rounds] == [1, 2]
    assert all(r.win_rate is not None and r.obedience_base is not None for r in found.rounds)
    config = (tmp_path / "loop" / "round-2" / "run" / "config.yaml").read_text()
    assert f"init_from: {tmp_path / 'loop' / 'round-1' / 'run' / 'export'}" in config
    assert (tmp_path / "loop" / "rounds.png").is_file()
    assert markdown(found.rounds).count("\n| ") == 3
    assert run_loop(options, 2, tmp_path / "loop").rounds == found.rounds
