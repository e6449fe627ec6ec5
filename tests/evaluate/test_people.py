"""Votes against scores: win rates, accuracy and bias by hand; votes of other galleries."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from diffalign.evaluate.details import as_range
from diffalign.evaluate.people import calibration, read_ballot, win_rates
from diffalign.evaluate.results import Row
from diffalign.votes.rows import Shown, Vote, VoteError, read_votes, to_lines
from diffalign.votes.summary import summarise

SCORES = {"base": 0.0, "good": 1.0, "odd": 2.0}
"""People will say that good beats base and that odd loses to both: the scorer is wrong about odd."""


def digest(model: str, prompt: int) -> str:
    return f"{list(SCORES).index(model)}{prompt:063d}"


def rows(prompts: int = 6) -> list[Row]:
    return [
        Row(
            prompt_id=f"p{i}", prompt=f"prompt {i}", seed=0, model=model, path=f"{model}/{i}.png", width=8,
            height=8, sha256=digest(model, i), scores={"s": SCORES[model]},
        )
        for model in SCORES
        for i in range(prompts)
    ]  # fmt: skip


def vote(prompt: int, a: str, b: str, choice: str, number: int = 0, **more: object) -> Vote:
    time = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=number)
    return Vote(
        gallery="0" * 64, time=time, ms=900,
        prompt_id=f"p{prompt}", prompt=f"prompt {prompt}", seed=0,
        a=Shown(model=a, sha256=digest(a, prompt)), b=Shown(model=b, sha256=digest(b, prompt)),
        left="a", choice=choice, **{"rater": "r", **more},
    )  # fmt: skip


def write(folder: Path, votes: list[Vote]) -> Path:
    file = folder / "votes.jsonl"
    file.write_text(to_lines(votes))
    return file


def all_votes() -> list[Vote]:
    found = []
    for i in range(6):
        found.append(vote(i, "base", "good", "b" if i < 5 else "both_bad", 1))
        found.append(vote(i, "odd", "base", "b", 2))
        found.append(vote(i, "good", "odd", "a" if i else "tie", 3))
    return found


def test_win_rates_by_hand(tmp_path: Path) -> None:
    extra = [
        vote(0, "base", "good", "a", 10, anchor="a"),
        vote(0, "base", "good", "a", 12, aspect="looks"),
        vote(0, "base", "good", "a", 13, repeat_of=datetime(2026, 1, 1, tzinfo=UTC)),
    ]
    ballot = read_ballot([write(tmp_path, all_votes() + extra)], rows())
    found = win_rates(ballot, list(SCORES))
    good, odd = found["models"]["good"], found["models"]["odd"]
    assert (good["wins"], good["ties"], good["losses"], good["both_bad"]) == (5, 1, 0, 1)
    assert good["win_rate"]["value"] == pytest.approx(5.5 / 6)
    assert (odd["wins"], odd["losses"]) == (0, 6)
    assert [row["rank"] for row in found["league"]] == [2, 1, 3]
    assert (found["raters"], found["votes"]) == (1, 18)
    assert "league" not in win_rates(ballot, ["base", "good"])


def test_accuracy_and_bias_by_hand(tmp_path: Path) -> None:
    ballot = read_ballot([write(tmp_path, all_votes())], rows())
    found = calibration(ballot, "s", list(SCORES), 0.25)
    assert found["votes"] == 5 + 6 + 5
    assert found["accuracy"]["value"] == pytest.approx(5 / 16)
    assert found["bias"]["good"]["value"] == pytest.approx(1 - 5.5 / 6)
    assert found["bias"]["odd"]["value"] == pytest.approx(1.0)
    wide = calibration(ballot, "s", list(SCORES), 1.5)  # good and base are a tie to the scorer then
    assert wide["bias"]["good"]["value"] == pytest.approx(0.5 - 5.5 / 6)


def test_sides_do_not_matter(tmp_path: Path) -> None:
    turned = {"a": "b", "b": "a", "tie": "tie", "both_bad": "both_bad"}
    swapped = [
        v.model_copy(update={"a": v.b, "b": v.a, "left": "b", "choice": turned[v.choice]})
        for v in all_votes()
    ]
    one, two = (read_ballot([write(tmp_path, votes)], rows()) for votes in (all_votes(), swapped))
    assert win_rates(one, list(SCORES))["models"] == win_rates(two, list(SCORES))["models"]
    assert calibration(one, "s", list(SCORES), 0.25) == calibration(two, "s", list(SCORES), 0.25)


def test_votes_of_another_gallery(tmp_path: Path) -> None:
    file = write(tmp_path, [vote(7, "base", "good", "a")])
    with pytest.raises(VoteError, match="none of the votes"):
        read_ballot([file], rows())
    file = write(tmp_path, [vote(7, "base", "good", "a"), vote(0, "base", "good", "a")])
    assert read_ballot([file], rows()).left_out == 1
    with pytest.raises(VoteError, match="all votes are ties"):
        calibration(
            read_ballot([write(tmp_path, [vote(0, "base", "good", "tie")])], rows()), "s", ["base"], 0.0
        )


def test_the_same_votes_count_as_in_votes_summary(tmp_path: Path) -> None:
    """Last words, votes taken back, and nothing of a rater who fails the anchors, for both commands."""
    later = [vote(0, "base", "good", "a", 10), vote(1, "odd", "base", "skip", 11)]
    careless = [vote(i, "base", "good", "a", 20 + i, rater="careless") for i in range(6)]
    careless.append(vote(0, "good", "good", "b", 30, anchor="a", rater="careless"))
    second = [vote(i, "base", "good", "b" if i % 2 else "a", 40 + i, rater="s") for i in range(6)]
    file = write(tmp_path, all_votes() + later + careless + second)
    found = win_rates(read_ballot([file], rows()), list(SCORES))["models"]
    (overall,) = summarise(read_votes([file]), "base").aspects
    for duel in overall.duels:
        if duel.base == "base":
            row = found[duel.model]
            assert (row["wins"], row["losses"], row["both_bad"]) == (duel.wins, duel.losses, duel.both_bad)
            assert row["win_rate"] == as_range(duel.rate)
    assert (found["good"]["wins"], found["good"]["losses"]) == (4 + 3, 1 + 3)
    assert found["odd"]["losses"] == 5
