"""votes summary: win rates with both-bad apart, crossed intervals, agreement, strengths."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from diffalign.cli import app
from diffalign.votes.rows import VoteError, to_lines
from diffalign.votes.show import human_line
from diffalign.votes.summary import agreement, summarise
from tests.votes.helpers import results, vote


def test_counts_and_rate_of_two_models(tmp_path: Path) -> None:
    rows = results(tmp_path, 8)
    choices = ["b", "b", "b", "a", "tie", "both_bad", "skip", "b"]
    votes = [vote(rows, i, c, at=i) for i, c in enumerate(choices)]
    found = summarise(votes, "base")
    (duel,) = found.aspects[0].duels
    assert (duel.model, duel.base, duel.wins, duel.ties, duel.both_bad, duel.losses) == (
        "dpo",
        "base",
        4,
        1,
        1,
        1,
    )
    assert duel.rate.value == pytest.approx(5 / 7)
    assert duel.rate.low < 5 / 7 < duel.rate.high
    assert human_line(duel, found.raters).startswith("human, 1 rater: dpo against base  win rate 0.714 [")
    assert "W/T/L 4/1/1, both bad 1  left share 0.20" in human_line(duel, found.raters)
    assert found.aspects[0].standings == ()


def test_the_win_rate_is_the_model_s_on_whichever_side_it_is(tmp_path: Path) -> None:
    rows = results(tmp_path)
    votes = [vote(rows, 0, "a", models=("dpo", "base")), vote(rows, 1, "b")]
    assert summarise(votes, "base").aspects[0].duels[0].rate.value == 1.0
    assert summarise(votes, "dpo").aspects[0].duels[0].rate.value == 0.0


def test_agreement_by_hand(tmp_path: Path) -> None:
    rows = results(tmp_path)
    votes = [vote(rows, i, c, at=i) for i, c in enumerate("aab")] + [vote(rows, 3, "a")]
    votes += [vote(rows, i, c, rater="ben", at=i) for i, c in enumerate("aba")]
    found = agreement(votes)
    assert (found.pairs, found.percent) == (3, pytest.approx(1 / 3))
    # n = 6 answers of 3 items, a x 4 and b x 2; observed disagreement 4 of 6, expected 2*4*2/(6*5)
    assert found.alpha == pytest.approx(1 - (4 / 6) / (16 / 30))


def test_aspects_and_raters_stand_apart_and_three_models_are_ranked(tmp_path: Path) -> None:
    rows = results(tmp_path, 12, ("base", "dpo", "kto"))
    votes = []
    for i in range(12):
        for at, (pair, choice) in enumerate(
            [(("base", "dpo"), "b"), (("base", "kto"), "b" if i % 2 else "a"), (("dpo", "kto"), "a")]
        ):
            votes.append(vote(rows, i, choice, models=pair, at=10 * i + at, left="a" if i % 2 else "b"))
    votes += [vote(rows, 0, "a", rater="ben"), vote(rows, 1, "tie", aspect="looks")]
    found = summarise(votes, "base")
    overall, looks = found.aspects
    assert [(d.model, d.base) for d in overall.duels] == [("dpo", "base"), ("kto", "base"), ("kto", "dpo")]
    assert list(overall.by_rater) == ["anna", "ben"]
    assert overall.duels[0].raters == 2
    assert [s.rank for s in overall.standings] == [2, 1, 3] or overall.standings[1].rank == 1
    assert overall.standings[0].gain.value == 0
    assert overall.standings[1].gain.low > 0
    assert (looks.votes, looks.duels[0].ties) == (1, 1)


def test_nothing_that_counts_is_said(tmp_path: Path) -> None:
    rows = results(tmp_path)
    with pytest.raises(VoteError, match="there are no votes"):
        summarise([])
    with pytest.raises(VoteError, match="none of 1 votes counts: 1 are skips"):
        summarise([vote(rows, 0, "skip")])
    with pytest.raises(VoteError, match="no vote is on a model called 'sft'; there are base, dpo"):
        summarise([vote(rows, 0, "a")], "sft")


def test_the_command_prints_and_writes(tmp_path: Path) -> None:
    rows = results(tmp_path / "run", 6)
    votes = [vote(rows, i, "b" if i else "a", rater=r, at=i) for i in range(6) for r in ("anna", "ben")]
    (tmp_path / "v.jsonl").write_text(to_lines(votes))
    result = CliRunner().invoke(
        app, ["votes", "summary", str(tmp_path / "v.jsonl"), "--json", str(tmp_path / "s.json")]
    )
    assert result.exit_code == 0, result.output
    assert "human, 2 raters: dpo against base" in result.output
    assert "agreement on 6 pairs seen by several: 100.0%" in result.output
    assert json.loads((tmp_path / "s.json").read_text())["counted"]["votes"] == 12
